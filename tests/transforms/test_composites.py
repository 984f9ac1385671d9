"""Lists of transforms that configurations share."""

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset
from PIL import Image

from nucsam_monai import transforms
from nucsam_monai.utils.errors import ConfigurationError


def names(steps: Any) -> list[str]:
    return [type(step).__name__ for step in getattr(steps, "transforms", steps)]


@pytest.fixture
def item() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    instances = np.zeros((1, 40, 40), dtype=np.int32)
    instances[0, 5:15, 5:15], instances[0, 20:30, 12:30] = 1, 2
    image = torch.from_numpy(rng.integers(0, 256, (3, 40, 40)).astype(np.uint8))
    return {"image": image, "instances": torch.from_numpy(instances)}


def test_a_chain_joins_lists_of_lists() -> None:
    assert len(transforms.chain([abs, [abs, [None, abs]], (), None]).transforms) == 3


def test_a_cache_holds_images_as_they_were_read(tmp_path: Any) -> None:
    Image.fromarray(np.full((6, 5, 3), 7, np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(np.ones((6, 5), np.uint8)).save(tmp_path / "instances.png")
    item = {"image": str(tmp_path / "image.png"), "instances": str(tmp_path / "instances.png")}
    steps = transforms.chain([transforms.load_nuclei(), transforms.resize(64)])
    dataset = CacheDataset([item], steps, num_workers=1, progress=False)
    cached = dataset._cache[0]["image"]
    assert (tuple(cached.shape), cached.dtype) == ((3, 6, 5), torch.uint8)
    assert tuple(dataset[0]["image"].shape) == (3, 64, 64)


def test_nuclei_are_read_with_their_image(tmp_path: Any) -> None:
    Image.fromarray(np.full((6, 5, 3), 7, np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(np.arange(30, dtype=np.uint16).reshape(6, 5)).save(tmp_path / "instances.png")
    item = {"image": str(tmp_path / "image.png"), "instances": str(tmp_path / "instances.png"), "classes": 1}
    plain = transforms.chain(transforms.load_nuclei())(item)
    assert (tuple(plain["image"].shape), plain["image"].dtype) == ((3, 6, 5), torch.uint8)
    assert (tuple(plain["instances"].shape), int(plain["instances"][0, 1, 0])) == ((1, 6, 5), 5)
    assert plain["image_path"] == item["image"]
    one = transforms.chain(transforms.load_nuclei(["nucleus"], lambda _: {1: 1}))(item)
    assert "classes" not in one
    several = transforms.chain(transforms.load_nuclei(["a", "b"], lambda _: {1: 1}))(item)
    assert several["classes"] == {1: 1}
    alone = transforms.read_image_alone("image")({"image": item["image"]})
    assert (alone["pixels"].dtype, alone["image"].dtype) == (torch.uint8, torch.float32)


@pytest.mark.parametrize("size_px", [24, 64])
def test_crops_have_their_size_and_keep_labels_on_their_pixels(item: dict[str, Any], size_px: int) -> None:
    item["image"] = item["instances"].expand(3, -1, -1).to(torch.uint8) * 100
    flips = transforms.flip_rotate_crop(size_px, pad_mode="symmetric")
    assert names(flips)[-1] == "RandColorJitterd"
    for steps in (flips[:-1], transforms.crop(size_px, random=False)):
        cut = transforms.chain(steps)(item)
        assert cut["image"].shape == (3, size_px, size_px)
        assert torch.equal(cut["image"][:1], (cut["instances"] * 100).to(torch.uint8))


@pytest.mark.parametrize("fit", ["tile", "resize"])
def test_images_come_to_the_working_size_as_in_inference(item: dict[str, Any], fit: Any) -> None:
    item["image"], item["instances"] = item["image"][:, :32], item["instances"][:, :32]
    item["image"][:, :16], item["image"][:, 16:] = 50, 200  # dark above, bright below
    steps = (
        transforms.working_size(20, fit),
        transforms.flip_rotate_crop(20, fit=fit)[:-3],
        [transforms.RandZoomCropd(["image", "instances"], 20, ["image", "labels"], prob=0.0, fit=fit)],
    )
    seen = [transforms.chain(step).set_random_state(seed)(item) for seed in range(5) for step in steps]
    assert {tuple(one[key].shape[1:]) for one in seen for key in ("image", "instances")} == {(20, 20)}
    whole = [one["image"].float().mean() == 125 and one["instances"].max() == 2 for one in seen]
    assert all(whole) if fit == "resize" else not all(whole)
    with pytest.raises(ConfigurationError, match="fit 'stretch': expected one of tile, resize"):
        transforms.working_size(20, "stretch")  # type: ignore[arg-type]


def test_resized_labels_stay_ids(item: dict[str, Any]) -> None:
    small = transforms.resize(16)(item)
    assert small["image"].shape == (3, 16, 16)
    assert set(small["instances"].unique().tolist()) == {0, 1, 2}


def test_steps_that_are_not_wanted_are_left_out() -> None:
    assert transforms.distance_targets("components") == transforms.expert_points(False) == []
    assert transforms.nucleus_sizes(False) == transforms.foreground_of_all(False) == []
    assert transforms.hovernet_targets(False) == []
    assert names(transforms.distance_targets("distance")) == ["DistanceTargetd"]
    assert transforms.expert_points(True, 3, seed=1)[0].max_points == 3
    assert names(transforms.nucleus_sizes(True)) == ["NucleusSizesd"]
    assert names(transforms.foreground_of_all(True)) == ["ForegroundMaskd"]
    assert names(transforms.hovernet_targets(True)) == ["ComputeHoVerMapsd", "ConcatItemsd"]


def test_foreground_is_the_label(item: dict[str, Any]) -> None:
    found = transforms.chain(transforms.foreground_targets())(item)
    assert torch.equal(found["label"] > 0, item["instances"] > 0)
    assert set(transforms.keep("label", "missing")(found)) == {"label"}
    with pytest.raises(KeyError):
        transforms.keep("label", "missing", optional=False)(found)


def test_outputs_become_instances(item: dict[str, Any]) -> None:
    output = {"pred": (item["instances"] > 0).float(), "instances": item["instances"]}
    found = transforms.to_instances(0.5, "components", with_truth=True)(output)
    assert len(found["pred"]) == 2
    assert torch.equal(found["label_instances"], item["instances"])
    assert names(transforms.to_instances(0.5, "components", hovernet=True)) == ["HoVerNetInstancesd"]


@pytest.mark.parametrize(("crop_px", "padded_px", "side"), [(None, None, 40), (32, 36, 36)])
def test_augmentation_of_the_prompter(
    item: dict[str, Any], crop_px: int | None, padded_px: int | None, side: int
) -> None:
    augment = transforms.chain(transforms.promptnucseg_point_augmentation(4, crop_px, padded_px))
    augment.set_random_state(0)
    for _ in range(3):
        found = augment(item)
        assert found["image"].shape == (3, side, side)
        assert torch.equal(found["instances"], found["instances"].round())


def test_augmentation_of_the_segmenter(item: dict[str, Any]) -> None:
    augment = transforms.chain(transforms.promptnucseg_mask_augmentation(32))
    augment.set_random_state(0)
    for _ in range(3):
        found = augment(item)
        assert found["image"].shape == (3, 32, 32)
        assert 0 <= float(found["image"].min()) <= float(found["image"].max()) <= 255


def test_a_zoom_changes_the_size(item: dict[str, Any]) -> None:
    steps = transforms.chain([*transforms.zoom([2.0, 2.0]), *transforms.flip_and_turn()])
    sizes = {tuple(steps.set_random_state(seed)(item)["image"].shape) for seed in range(8)}
    assert sizes == {(3, 40, 40), (3, 80, 80)}
