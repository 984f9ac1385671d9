"""What systems learn, and that their rules find the nuclei again in maps that are right."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import HoVerNet

from nucsam_monai import systems
from nucsam_monai.losses import HoVerNetBranchLoss
from nucsam_monai.networks.baselines import HoVerNetBranches
from nucsam_monai.networks.sam.weights import save_trained, write_safetensors
from nucsam_monai.systems import SYSTEMS
from nucsam_monai.systems.cdnet import direction_difference
from nucsam_monai.systems.cppnet import refined_rays
from nucsam_monai.systems.stardist import RAYS, paint_stars, ray_lengths, star_polygon
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from tests.bundles.promptnucseg_runs import CLASS_NAMES, write_typed_dataset
from tests.oracles import star_polygons

CHANNELS = {
    "hovernet": 3,
    "cellvit-*": 3,
    "stardist": 33,
    "cppnet": 33,
    "dcan": 2,
    "dist": 1,
    "cdnet": 11,
    "micronet": 1,
}


def discs(*places: tuple[int, int, int], side: int = 64) -> np.ndarray:
    """Draw discs of (row, column, radius); where two meet, the first keeps its pixels."""
    rows, columns = np.mgrid[:side, :side]
    labels = np.zeros((side, side), dtype=np.int64)
    for name, (row, column, radius) in enumerate(places, start=1):
        labels[((rows - row) ** 2 + (columns - column) ** 2 <= radius**2) & (labels == 0)] = name
    return labels


def of_stars(target: np.ndarray) -> np.ndarray:
    return np.concatenate([target[:1], target[1:] / 256])


def of_cdnet(target: np.ndarray) -> np.ndarray:
    parts, direction, nearness = target
    one_hot = direction[None] == np.arange(1, 9)[:, None, None]
    return np.concatenate([np.stack([parts > 0, parts == 1, nearness]), one_hot])


def of_hovernet(target: np.ndarray) -> np.ndarray:
    return np.concatenate([target[:1], (target[1:] + 1) / 2])


RIGHT_MAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "hovernet": of_hovernet,
    "cellvit-*": of_hovernet,
    "stardist": of_stars,
    "cppnet": of_stars,
    "dcan": lambda target: target,
    "dist": lambda target: target / (target + 0.5),
    "cdnet": of_cdnet,
    "micronet": lambda target: target,
}
"""What the sigmoid of a network is that learned its target by heart."""


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.rule])
def test_the_rule_finds_the_nuclei_of_the_target_again(name: str) -> None:
    truth = discs((20, 18, 9), (20, 36, 9), (44, 30, 10))
    maps = RIGHT_MAPS[name](SYSTEMS[name].target(truth, None)).astype(np.float32)
    nuclei = systems.system_instances(name, 0.5, "own")({"pred": torch.from_numpy(maps)})["pred"]
    found = nuclei.instances
    assert set(np.unique(found)) == {0, 1, 2, 3}
    assert ((nuclei.foreground >= 0.5) == (truth > 0)).mean() > 0.97
    for number in (1, 2, 3):
        mine = truth == number
        matched = found == np.bincount(found[mine]).argmax()
        assert (mine & matched).sum() / (mine | matched).sum() > 0.85


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.rule])
def test_a_rule_finds_nothing_in_nothing_and_refuses_other_maps(name: str) -> None:
    rule = systems.OwnInstancesd(SYSTEMS[name].rule)
    assert len(rule({"pred": np.zeros((CHANNELS[name], 20, 24), np.float32)})["pred"]) == 0
    with pytest.raises(ConfigurationError, match=r"expected .*\(\d+, H, W\)"):
        rule({"pred": np.zeros((CHANNELS[name] + 1, 20, 24), np.float32)})


def test_rays_end_where_their_nucleus_does() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (5, 6)).repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_array_equal(ray_lengths(labels), star_polygons.ray_lengths(labels))


def test_a_polygon_has_the_pixels_whose_centres_it_holds() -> None:
    rng = np.random.default_rng(1)
    for row, column in ((12, 12), (2, 21), (23, 0)):
        rays = rng.uniform(2, 9, RAYS)
        star, mask = star_polygon(row, column, rays, (24, 24)), np.zeros((24, 24), dtype=bool)
        mask[star.rows, star.columns] = True
        np.testing.assert_array_equal(mask, star_polygons.rasterise(row, column, rays, (24, 24)))
    assert star_polygon(-9, 3, np.full(RAYS, 2.0), (8, 8)) is None


def test_polygons_that_overlap_a_more_probable_one_are_suppressed() -> None:
    rng = np.random.default_rng(2)
    probability = rng.random((20, 22)).astype(np.float32)
    rays = rng.uniform(2, 6, (RAYS, 20, 22)).astype(np.float32)
    found, scores = paint_stars(probability, rays, 0.6)
    expected, expected_scores = star_polygons.paint(probability, rays, 0.6)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(scores, np.array(expected_scores, dtype=np.float32))
    assert len(scores) > 5


def test_rays_are_what_the_points_on_them_say() -> None:
    rng = np.random.default_rng(3)
    rays, confidence = rng.uniform(-1, 5, (8, 6, 7)), rng.normal(size=(8, 6, 7))
    expected = star_polygons.refined_rays(rays, confidence, 3)
    found = refined_rays(torch.from_numpy(rays)[None], torch.from_numpy(confidence)[None], samples=3)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_directions_differ_where_nuclei_touch_and_in_their_centres() -> None:
    truth = discs((10, 9, 6), (10, 22, 6), side=32)
    direction = SYSTEMS["cdnet"].target(truth, None)[1]
    difference = direction_difference((direction[None] == np.arange(1, 9)[:, None, None]).astype(float))
    assert difference[10, 15] > 0.9
    assert difference[10, 9] > 0.9
    assert difference[10, 6] < 0.1


def test_hovernet_tells_classes_apart_by_vote() -> None:
    truth = discs((20, 18, 9), (20, 40, 9))
    classes = systems.class_map(truth, {1: 1, 2: 0})
    target = SYSTEMS["hovernet"].target(truth, classes)
    assert target.shape == (4, 64, 64)
    assert np.unique(target[3]).tolist() == [0, 1, 2]
    votes = np.stack([classes == 1, classes == 2]).astype(np.float32)
    votes[:, 20, 18] = 0.9, 0.1  # one pixel of the first nucleus
    maps = np.concatenate([RIGHT_MAPS["hovernet"](target[:3]), votes]).astype(np.float32)
    names = ("epithelial", "other")
    nuclei = systems.system_instances("hovernet", 0.5, "own", class_names=names)({"pred": maps})["pred"]
    assert nuclei.class_names == names
    assert nuclei.table["class_id"].tolist() == [1, 0]


@pytest.mark.parametrize("name", ["stardist", "cppnet", "dcan", "dist", "cdnet", "micronet"])
def test_other_systems_learn_and_tell_classes_as_well(name: str) -> None:
    names, truth = ("epithelial", "other"), discs((20, 18, 9), (20, 40, 9))
    classes = systems.class_map(truth, {1: 1, 2: 0})
    target = SYSTEMS[name].target(truth, classes)
    assert np.unique(target[-1]).tolist() == [0, 1, 2]
    network = systems.build_network(name, "small", class_names=names).train()
    output = network(torch.zeros(2, 3, 64, 64))
    loss = systems.own_loss(name, torch.nn.Identity())
    assert torch.isfinite(loss(output, torch.from_numpy(target).expand(2, -1, -1, -1)))
    with torch.no_grad():
        maps = network.eval()(torch.zeros(1, 3, 64, 64)).sigmoid()[0].numpy()
    plain = SYSTEMS[name].target(truth, None)
    right = RIGHT_MAPS[name](plain).astype(np.float32)
    assert len(maps) == len(right) + 2
    assert 0.5 < maps[-2:].sum(axis=0).max() < 1
    votes = np.stack([classes == 1, classes == 2]).astype(np.float32)
    right = np.concatenate([right, votes])
    nuclei = systems.system_instances(name, 0.5, "own", class_names=names)({"pred": right})["pred"]
    assert nuclei.class_names == names
    centres = nuclei.instances[20, [18, 40]]
    assert [nuclei.table["class_id"][nuclei.table["id"] == one].item() for one in centres] == [1, 0]


def test_hovernet_s_loss_takes_the_classes_behind_the_distances() -> None:
    truth = discs((12, 12, 6), (12, 24, 5), side=32)
    target = torch.from_numpy(SYSTEMS["hovernet"].target(truth, systems.class_map(truth, {1: 0, 2: 1})))[None]
    types = torch.nn.functional.one_hot(target[:, 3].long(), 3).movedim(-1, 1).float()
    right = {
        "nucleus_prediction": 60 * torch.cat([1 - target[:, :1], target[:, :1]], dim=1),
        "horizontal_vertical": target[:, 1:3],
        "type_prediction": 60 * types,
    }
    loss = HoVerNetBranchLoss()
    assert loss(right, target) < 1e-3
    assert loss({**right, "type_prediction": 60 * types.roll(1, dims=1)}, target) > 1
    with pytest.raises(ConfigurationError, match=r"expected \(B, 4, H, W\)"):
        loss(right, target[:, :3])


def test_hovernet_gives_the_probability_of_each_class() -> None:
    with torch.device("meta"):
        network = HoVerNetBranches(classes=4).eval()
        assert network(torch.empty(1, 3, 256, 256)).shape == (1, 7, 256, 256)
    types = torch.randn(1, 3, 256, 256)
    network = HoVerNetBranches.__new__(HoVerNetBranches)
    torch.nn.Module.__init__(network)
    keys = (HoVerNet.Branch.NP.value, HoVerNet.Branch.HV.value, HoVerNet.Branch.NC.value)
    branches = dict(zip(keys, (torch.zeros(1, 2, 256, 256), torch.zeros(1, 2, 256, 256), types), strict=True))
    network.network = lambda _image: branches
    found = torch.sigmoid(network.eval()(torch.zeros(1, 3, 256, 256)))
    torch.testing.assert_close(found[:, 3:], types.softmax(dim=1)[:, 1:])


def test_items_get_the_target_with_or_without_classes() -> None:
    item = {"instances": torch.from_numpy(discs((12, 12, 6), side=32))[None], "classes": {1: 2}}
    (typed,) = systems.own_targets("hovernet", "own", ("a", "b", "c"))
    assert typed(item)["label"][3].unique().tolist() == [0, 3]
    (plain,) = systems.own_targets("hovernet", "own")
    assert plain(item)["label"].shape == (3, 32, 32)
    with pytest.raises(DatasetError, match="have no class"):
        typed({**item, "classes": {}})
    assert len(systems.read_classes_of(("a", "b"))) == 1
    assert systems.read_classes_of(("nucleus",)) == []


def test_classes_are_measured_where_network_and_dataset_agree(tmp_path: Path) -> None:
    dataset = write_typed_dataset(tmp_path)
    assert systems.classes_of("hovernet", dataset) == list(CLASS_NAMES)
    assert systems.classes_of("stardist", dataset) == list(CLASS_NAMES)
    assert systems.classes_of("unet", dataset) == ["nucleus"]
    for classes, found in ((["nucleus"], ["nucleus"]), (list(CLASS_NAMES), list(CLASS_NAMES))):
        network = systems.build_network("stardist", "small", class_names=classes)
        weights, state = tmp_path / "model.safetensors", tmp_path / "training_state.safetensors"
        save_trained(weights, network, network.header)
        write_safetensors(state, {}, {"settings": json.dumps({"class_names": str(classes)})})
        assert systems.classes_of("stardist", dataset, weights) == found
        assert systems.classes_of("stardist", dataset, None, tmp_path, resume=True) == found
    assert systems.classes_of("stardist", dataset, "missing", "missing", resume=True) == list(CLASS_NAMES)
    assert systems.evaluated_classes(CLASS_NAMES, dataset) == list(CLASS_NAMES)
    assert systems.evaluated_classes(("other", "classes"), dataset) == ["nucleus"]
    assert systems.true_classes(("nucleus",)) == []
    assert len(systems.true_classes(CLASS_NAMES)) == 2


@pytest.mark.parametrize("rule", ["components", "watershed", "distance"])
def test_stars_have_no_foreground_for_other_rules(rule: str) -> None:
    with pytest.raises(ConfigurationError, match=f"instances '{rule}': stardist"):
        systems.system_instances("stardist", 0.5, rule)
