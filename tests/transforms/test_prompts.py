import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import (
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandRotate90d,
    RandSpatialCropd,
    RandZoomd,
    SpatialPadd,
)

from nucsam_monai.transforms import (
    AugmentWithFoundd,
    ExpertPointsd,
    FoundNuclei,
    MatchedPromptsd,
    NucleusPointsd,
    NucleusPromptsd,
    NucleusSizesd,
)
from nucsam_monai.transforms.prompts import (
    match_found,
    move_points,
    own_boxes,
    prompt_with_neighbours,
    random_points,
)
from nucsam_monai.transforms.targets import nucleus_points
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from tests.oracles.matched_prompts import best_point_of_each
from tests.oracles.nucleus_prompts import neighbours

LABEL_MAPS = hnp.arrays(
    np.int32,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.sampled_from([0, 0, 1, 2, 5, 9, 70_000]),
)


def prompts_of(instances, seed=0, classes=None, **options):
    item = {"instances": torch.as_tensor(instances)[None], "classes": classes}
    return NucleusPromptsd(**options).set_random_state(seed)(item)


@settings(max_examples=100, deadline=None)
@given(LABEL_MAPS, st.sampled_from([None, 1, 2, 8]), st.integers(0, 2), st.integers(0, 1000))
def test_every_prompt_lies_in_its_own_mask_and_its_negatives_in_others(instances, most, negatives, seed):
    item = prompts_of(instances, seed, max_masks=most, negatives=negatives)
    points, labels, masks = item["points"].numpy(), item["point_labels"].numpy(), item["masks"].numpy()
    nuclei = len(np.unique(instances[instances > 0]))
    chosen = nuclei if most is None else min(nuclei, most)
    assert (points.shape, points.dtype) == ((chosen, 1 + negatives, 2), np.float32)
    assert (labels.shape, labels.dtype) == ((chosen, 1 + negatives), np.int64)
    assert (masks.shape, masks.dtype) == ((chosen, *instances.shape), np.uint8)
    found = min(negatives, max(nuclei - 1, 0))
    assert labels.tolist() == [[1] + [0] * found + [-1] * (negatives - found)] * chosen
    whose = []
    for prompt, label, mask in zip(points.astype(int), labels, masks, strict=True):
        ids = [instances[y, x] for x, y in prompt[label >= 0]]
        np.testing.assert_array_equal(mask, instances == ids[0])
        assert 0 not in ids
        assert len(set(ids)) == len(ids)
        whose.append(ids[0])
    assert len(set(whose)) == chosen
    assert not points[labels == -1].any()


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 7), st.just(2)), elements=st.integers(0, 9)),
    st.integers(0, 3),
    st.integers(0, 100),
)
def test_negatives_are_the_nearest_points_of_all_other_nuclei(points, negatives, seed):
    chosen = np.random.default_rng(seed).permutation(len(points))[: 1 + seed % len(points)]
    prompts, labels = prompt_with_neighbours(points, chosen, negatives)
    for row, nucleus in enumerate(chosen):
        np.testing.assert_array_equal(prompts[row, 0], points[nucleus])
        for column, other in enumerate(neighbours(points, nucleus, negatives), start=1):
            assert labels[row, column] == (-1 if other is None else 0)
            np.testing.assert_array_equal(prompts[row, column], [0, 0] if other is None else points[other])


def test_random_points_are_uniform_over_the_pixels_of_each_nucleus():
    instances = np.array([[7, 7, 0, 3], [7, 0, 0, 3]])
    random = np.random.RandomState(0)
    drawn = np.array([random_points(instances, random) for _ in range(3000)])
    for nucleus, value in enumerate([3, 7]):
        pixels, counts = np.unique(drawn[:, nucleus], axis=0, return_counts=True)
        assert {(x, y) for x, y in pixels} == {(x, y) for y, x in np.argwhere(instances == value)}
        expected = 3000 / len(pixels)
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_random_points_never_leave_a_nucleus_at_the_end_of_the_interval():
    class AlmostOne:
        def random_sample(self, count):
            return np.full(count, np.nextafter(1.0, 0.0))

    np.testing.assert_array_equal(
        random_points(np.array([[1, 1, 2]]), AlmostOne()), np.float32([[1, 0], [2, 0]])
    )


def test_centroids_are_those_of_the_other_point_prompts():
    instances = np.kron(np.arange(1, 7).reshape(2, 3), np.ones((5, 4), dtype=int)).astype(np.int32)
    item = prompts_of(instances, max_masks=None, point="centroid")
    np.testing.assert_array_equal(item["points"][:, 0], nucleus_points(instances))


def test_nuclei_are_redrawn_in_every_call_and_repeatably():
    instances = np.arange(1, 101, dtype=np.int32).reshape(10, 10)
    transform = NucleusPromptsd(max_masks=5).set_random_state(3)
    item = {"instances": torch.as_tensor(instances)[None]}
    first, second = transform(item)["points"], transform(item)["points"]
    assert not torch.equal(first, second)
    transform.set_random_state(3)
    assert torch.equal(transform(item)["points"], first)


def test_a_share_of_the_prompts_keeps_its_negatives():
    instances = np.arange(1, 2501, dtype=np.int32).reshape(50, 50)
    labels = prompts_of(instances, max_masks=None, negatives=1, negatives_prob=0.3)["point_labels"]
    assert (labels[:, 0] == 1).all()
    assert set(labels[:, 1].tolist()) == {0, -1}
    assert (labels[:, 1] == 0).float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_classes_follow_their_nuclei():
    instances = np.array([[3, 3, 0, 5], [0, 0, 0, 8]], dtype=np.int32)
    classes = {3: 1, 5: 0, 8: 4}
    item = prompts_of(instances, classes=classes, classes_key="classes", max_masks=2)
    ids = [instances[mask.numpy() > 0][0] for mask in item["masks"]]
    assert item["class_ids"].tolist() == [classes[value] for value in ids]
    assert item["class_ids"].dtype == torch.int64
    assert "class_ids" not in prompts_of(instances, classes=classes)
    with pytest.raises(DatasetError, match="1 of 3 nuclei have no class, the first is 8"):
        prompts_of(instances, classes={3: 1, 5: 0}, classes_key="classes")


@pytest.mark.parametrize("point", ["random", "centroid"])
@pytest.mark.parametrize("kind", [torch.as_tensor, MetaTensor, np.asarray])
def test_an_empty_crop_has_no_prompts(point, kind):
    transform = NucleusPromptsd(point=point, negatives=2, classes_key="classes")
    item = transform({"instances": kind(np.zeros((1, 4, 6), dtype=np.int32)), "classes": {}})
    shapes = {key: tuple(item[key].shape) for key in ("points", "point_labels", "masks", "class_ids")}
    assert shapes == {"points": (0, 3, 2), "point_labels": (0, 3), "masks": (0, 4, 6), "class_ids": (0,)}


@pytest.mark.parametrize(
    "options",
    [{"point": "middle"}, {"max_masks": 0}, {"negatives": -1}, {"negatives_prob": 1.1}, {"boxes_prob": -0.5}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError, match=str(next(iter(options.values())))):
        NucleusPromptsd(**options)


@pytest.mark.parametrize("negatives", [0, 2])
def test_a_share_of_the_prompts_are_boxes_around_their_masks(negatives):
    instances = np.kron(np.arange(1, 401).reshape(20, 20), np.ones((10, 6), dtype=int)).astype(np.int32)
    item = prompts_of(instances, max_masks=None, negatives=negatives, boxes_prob=0.3)
    points, labels = item["points"], item["point_labels"]
    assert points.shape[1] == labels.shape[1] == 2 + negatives
    boxed = labels[:, 0] == 2
    assert boxed.float().mean().item() == pytest.approx(0.3, abs=0.08)
    assert (labels[boxed, 1] == 3).all()
    assert (labels[boxed, 2:] == -1).all()
    assert (labels[~boxed, 0] == 1).all()
    assert (labels[~boxed, -1] == -1).all()  # the padding that SAM appends
    for mask, corners in zip(item["masks"][boxed], points[boxed, :2], strict=True):
        rows, columns = (axis.numpy() for axis in torch.nonzero(mask, as_tuple=True))
        box = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]) - 0.5
        assert (np.abs(corners.numpy() - box) <= 0.1 * np.array([6, 10]) + 1e-5).all()
    assert points[boxed, :2].min() >= -0.5


def test_without_nuclei_there_are_no_boxes():
    item = prompts_of(np.zeros((4, 6), dtype=np.int32), boxes_prob=1.0)
    assert (item["points"].shape, item["point_labels"].shape) == ((0, 2, 2), (0, 2))


ITEMS = [{"image": f"folder/{name}.png", "id": name} for name in ("first", "second", "third")]


@pytest.fixture
def transform(tmp_path):
    path = tmp_path / "points.json"
    path.write_text(json.dumps({"first.png": [[3, 4.5], [6, 0, 0]], "second": []}))
    return ExpertPointsd("image", path, ITEMS)


def named_item(name):
    return {"image": torch.zeros(3, 5, 7), "id": name}


def test_an_image_gets_its_points(transform):
    found = transform(named_item("first"))
    assert found["points"].tolist() == [[3, 4.5], [6, 0]]
    assert found["point_labels"].tolist() == [1, 0]
    assert (found["points"].dtype, found["point_labels"].dtype) == (torch.float32, torch.int64)


def test_an_empty_list_and_no_list(transform):
    found = transform(named_item("second"))
    assert (found["points"].shape, found["point_labels"].shape) == ((0, 2), (0,))
    assert "points" not in transform(named_item("third"))


def test_points_outside_and_unknown_images_are_refused(transform, tmp_path):
    with pytest.raises(DatasetError, match="outside of the image"):
        transform({**named_item("first"), "image": torch.zeros(3, 5, 6)})
    with pytest.raises(DatasetError, match="no such image"):
        ExpertPointsd("image", tmp_path / "points.json", ITEMS[1:])


BOTH = ["image", "instances"]
HEIGHT, WIDTH = 40, 56
EXACT = [
    SpatialPadd(BOTH, spatial_size=(50, 50)),
    RandSpatialCropd(BOTH, roi_size=(36, 36), random_size=False),
    RandFlipd(BOTH, prob=0.5, spatial_axis=0),
    RandFlipd(BOTH, prob=0.5, spatial_axis=1),
    RandRotate90d(BOTH, prob=0.75),
    RandGaussianNoised("image", prob=0.5),
]
WARPING = [
    RandZoomd(BOTH, prob=0.5, min_zoom=1.0, max_zoom=1.5, mode=("bilinear", "nearest-exact"), keep_size=True),
    RandAffined(
        BOTH,
        prob=0.8,
        rotate_range=0.18,
        shear_range=(0.18, 0.18),
        scale_range=(0.18, 0.18),
        translate_range=(5, 5),
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
        cache_grid=False,
    ),
]


@pytest.fixture(autouse=True)
def without_meta():
    set_track_meta(False)
    yield
    set_track_meta(True)


def item_of(instances):
    labels = torch.from_numpy(instances)[None]
    return {"image": (labels > 0).float().repeat(3, 1, 1), "instances": labels, "image_path": "a.png"}


def found(points):
    points = np.asarray(points, dtype=np.float32)
    return {"a.png": FoundNuclei(points, np.linspace(1, 0, len(points), dtype=np.float32))}


def test_points_follow_their_pixels_exactly():
    rng = np.random.default_rng(0)
    pixels = rng.permutation(HEIGHT * WIDTH)[:40]
    rows, columns = np.divmod(pixels, WIDTH)
    instances = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    instances[rows, columns] = 1 + np.arange(40)
    augment = AugmentWithFoundd(EXACT, found(np.stack([columns, rows], axis=-1)[:, None]))
    augment.set_random_state(seed=3)
    for _ in range(20):
        item = augment(item_of(instances))
        labels = item["instances"][0].numpy()
        inside = 0
        for number, (x, y) in enumerate(item["found_points"][:, 0].numpy(), start=1):
            assert abs(x - round(x)) < 1e-4
            assert abs(y - round(y)) < 1e-4
            if 0 <= round(y) < 36 and 0 <= round(x) < 36:
                inside += 1
                assert labels[round(y), round(x)] == number
        assert inside == len(np.unique(labels[labels > 0])) > 0


def test_points_follow_warped_nuclei():
    rows, columns = np.indices((HEIGHT, WIDTH))
    centres = np.array([[20, 18], [36, 22]])
    instances = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    for number, (x, y) in enumerate(centres, start=1):
        instances[(columns - x) ** 2 + (rows - y) ** 2 <= 25] = number
    augment = AugmentWithFoundd(WARPING, found(centres[:, None]))
    augment.set_random_state(seed=1)
    compared = 0
    for _ in range(20):
        item = augment(item_of(instances))
        labels = item["instances"][0].round().numpy()
        for number, point in enumerate(item["found_points"][:, 0].numpy(), start=1):
            y, x = np.nonzero(labels == number)
            if len(y) and y.min() > 0 and x.min() > 0 and y.max() < HEIGHT - 1 and x.max() < WIDTH - 1:
                compared += 1
                assert np.hypot(*(point - (x.mean(), y.mean()))) < 0.75
    assert compared > 20


def test_the_result_is_plain_and_the_switch_as_before():
    augment = AugmentWithFoundd(EXACT, found([[[3, 4]]]))
    before = item_of(np.zeros((HEIGHT, WIDTH), dtype=np.int32))
    item = augment(before)
    assert not get_track_meta()
    assert all(type(item[key]) is torch.Tensor for key in (*BOTH, "found_points", "found_scores"))
    assert before.keys() == {*BOTH, "image_path"}
    assert before["image"].shape == (3, HEIGHT, WIDTH)


def test_the_seed_decides_and_unknown_images_have_no_points():
    instances = np.arange(HEIGHT * WIDTH, dtype=np.int32).reshape(HEIGHT, WIDTH)
    plain, pointed = AugmentWithFoundd(EXACT, {}), AugmentWithFoundd(EXACT, found([[[3, 4]]]))
    items = []
    for augment in (plain, pointed, pointed):
        augment.set_random_state(seed=5)
        items.append(augment(item_of(instances)))
    assert "found_points" not in items[0]
    for other in items[1:]:
        assert all(torch.equal(items[0][key], other[key]) for key in BOTH)


def test_corners_of_boxes_are_moved_too():
    quarter_turn = torch.tensor([[0.0, 1, 0], [-1, 0, 9], [0, 0, 1]])  # row 2, column 3 was row 3, column 7
    moved = move_points(np.array([[[7.0, 3.0], [7.0, 0.0]]], dtype=np.float32), quarter_turn)
    assert moved.tolist() == [[[3.0, 2.0], [0.0, 2.0]]]


INSTANCES = torch.zeros(1, 20, 24, dtype=torch.int32)
INSTANCES[0, 2:6, 3:9] = 4
INSTANCES[0, 2:6, 9:12] = 7  # touches the first one
INSTANCES[0, 12:18, 14:20] = 9
FOUND = torch.tensor([[[4.0, 3.0]], [[8.4, 4.0]], [[15.0, 13.5]], [[1.0, 1.0]], [[40.0, 4.0]]])
SCORES = torch.tensor([0.5, 0.9, 0.8, 0.99, 0.95])


def item(points=FOUND, scores=SCORES):
    return {"instances": INSTANCES, "found_points": points, "found_scores": scores}


def prompted(result):
    """Return ``{id of the nucleus: its points}``, read off the masks."""
    ids = [int(INSTANCES[0][mask.bool()].unique()) for mask in result["masks"]]
    return dict(zip(ids, result["points"].tolist(), strict=True))


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 12))
def test_matching_equals_its_definition(seed, count):
    rng = np.random.default_rng(seed)
    instances = rng.integers(0, 4, (5, 7)) * rng.integers(1, 50)
    points = rng.uniform(-2, 8, (count, 1, 2)).astype(np.float32)
    scores = (rng.integers(0, 4, count) / 4).astype(np.float32)
    ids, rows = match_found(points, scores, instances)
    assert dict(zip(ids.tolist(), rows.tolist(), strict=True)) == best_point_of_each(
        points[:, 0].tolist(), scores.tolist(), instances.tolist()
    )
    assert (np.diff(ids) > 0).all()


def test_predicted_prompts_are_the_surest_points_and_others_are_left_out():
    result = MatchedPromptsd()(item())
    assert prompted(result) == {4: [[pytest.approx(8.4), 4.0]], 9: [[15.0, 13.5]]}
    assert result["points"].dtype == torch.float32
    assert result["point_labels"].tolist() == [[1], [1]]
    assert "found_points" not in result
    assert result["masks"].dtype == torch.uint8


def test_mixed_prompts_leave_no_nucleus_out():
    found = prompted(MatchedPromptsd(prompts="mixed").set_random_state(0)(item()))
    assert {number: found[number] for number in (4, 9)} == prompted(MatchedPromptsd()(item()))
    ((x, y),) = found[7]
    assert INSTANCES[0, int(y), int(x)] == 7


@pytest.mark.parametrize("prompts", ["gt_random", "gt_centroid"])
def test_prompts_of_the_truth_lie_in_their_nuclei(prompts):
    transform = MatchedPromptsd(prompts=prompts).set_random_state(0)
    drawn = [prompted(transform({"instances": INSTANCES})) for _ in range(5)]
    for found in drawn:
        assert set(found) == {4, 7, 9}
        assert all(INSTANCES[0, int(y), int(x)] == number for number, ((x, y),) in found.items())
    assert (drawn[0] == drawn[1]) == (prompts == "gt_centroid")


def test_at_most_so_many_nuclei_are_chosen_at_random():
    transform = MatchedPromptsd(max_nuclei=1, prompts="gt_centroid").set_random_state(0)
    chosen = {tuple(prompted(transform({"instances": INSTANCES}))) for _ in range(20)}
    assert chosen == {(4,), (7,), (9,)}


def test_no_nucleus_and_no_point_are_legal():
    nobody = MatchedPromptsd()(item(torch.zeros(0, 1, 2), torch.zeros(0)))
    empty = MatchedPromptsd(prompts="mixed")({**item(), "instances": torch.zeros(1, 20, 24)})
    for result in (nobody, empty):
        assert result["points"].shape == (0, 1, 2)
        assert result["point_labels"].shape == (0, 1)
        assert result["masks"].shape == (0, 20, 24)


def test_found_boxes_are_hulls_of_moved_corners_cut_to_the_crop():
    corners = torch.tensor([[[15.0, 13.0], [12.0, 30.0], [16.0, 29.0], [17.0, 11.0], [13.0, 12.0]]])
    result = MatchedPromptsd(prompt="box")(item(corners, torch.ones(1)))
    assert prompted(result) == {9: [[12.0, 11.0], [17.0, 19.5]]}
    assert result["point_labels"].tolist() == [[2, 3]]


def test_boxes_of_the_truth():
    exact = prompted(MatchedPromptsd(prompts="gt_centroid", prompt="box")({"instances": INSTANCES}))
    assert exact[4] == [[2.5, 1.5], [8.5, 5.5]]
    assert own_boxes(INSTANCES[0].numpy())[0].tolist() == exact[4]
    moved = MatchedPromptsd(prompts="gt_random", prompt="box").set_random_state(0)
    found = np.array(prompted(moved({"instances": INSTANCES}))[4]) - exact[4]
    assert (np.abs(found) <= 0.1 * np.array([6, 4]) + 1e-5).all()
    assert found.any()


def test_sizes_are_those_of_the_boxes():
    sizes = NucleusSizesd()({"instances": INSTANCES.float()})["point_sizes"]
    assert sizes.tolist() == [[6, 4], [3, 4], [6, 6]]
    assert NucleusSizesd()({"instances": torch.zeros(1, 3, 3)})["point_sizes"].shape == (0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "oracle"}, "train_prompts 'oracle': expected one of predicted"),
        ({"prompt": "mask"}, "expected 'point' or 'box'"),
        ({"max_nuclei": 0}, "and 1 or more"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        MatchedPromptsd(**options)


def test_missing_points_are_refused():
    with pytest.raises(ConfigurationError, match="expected found_points of the first stage"):
        MatchedPromptsd()({"instances": INSTANCES})
    with pytest.raises(ConfigurationError, match="found points without sizes"):
        MatchedPromptsd(prompt="box")(item())


@settings(max_examples=100, deadline=None)
@given(LABEL_MAPS)
def test_every_nucleus_has_the_point_nearest_to_its_centroid(instances):
    points = nucleus_points(instances)
    ids = [value for value in np.unique(instances) if value]
    assert points.shape == (len(ids), 2)
    assert points.dtype == np.float32
    for (x, y), value in zip(points.astype(int), ids, strict=True):
        assert instances[y, x] == value
        pixels = np.argwhere(instances == value)
        away = np.linalg.norm(pixels - pixels.mean(axis=0), axis=1)
        assert np.linalg.norm([y, x] - pixels.mean(axis=0)) == pytest.approx(away.min())


@settings(max_examples=60, deadline=None)
@given(LABEL_MAPS, st.integers(1, 6), st.integers(0, 100))
def test_points_are_padded_or_selected(instances, max_points, seed):
    transform = NucleusPointsd(max_points=max_points).set_random_state(seed)
    item = transform({"instances": torch.from_numpy(instances)[None]})
    points, labels = item["points"], item["point_labels"]
    assert (points.shape, points.dtype) == ((max_points, 2), torch.float32)
    assert (labels.shape, labels.dtype) == ((max_points,), torch.int64)
    nuclei = len(np.unique(instances[instances > 0]))
    kept = min(nuclei, max_points)
    assert labels.tolist() == [1] * kept + [-1] * (max_points - kept)
    assert not points[kept:].any()
    hit = {instances[int(y), int(x)] for x, y in points[:kept]}
    assert len(hit) == kept
    assert 0 not in hit


@pytest.mark.parametrize(("nuclei", "expected"), [(300, 300), (0, 1)])
def test_all_nuclei_may_be_prompted(nuclei, expected):
    item = {"instances": torch.arange(400).view(1, 20, 20) % (nuclei + 1)}
    labels = NucleusPointsd(max_points=None)(item)["point_labels"]
    assert len(labels) == expected
    assert (labels == 1).sum() == nuclei


def test_selection_changes_from_call_to_call_and_follows_from_the_seed():
    item = {"instances": torch.arange(1, 65).view(1, 8, 8)}
    transform = NucleusPointsd(max_points=8)
    drawn = [transform.set_random_state(1)(item)["points"], transform(item)["points"]]
    assert not torch.equal(*drawn)
    assert torch.equal(transform.set_random_state(1)(item)["points"], drawn[0])


def test_with_a_seed_an_image_gets_the_same_points_every_time():
    item = {"instances": torch.arange(1, 65).view(1, 8, 8)}
    transform = NucleusPointsd(max_points=8, seed=3)
    first = transform(item)["points"]
    transform({"instances": torch.arange(9).view(1, 3, 3)})
    assert torch.equal(transform(item)["points"], first)
    assert not torch.equal(NucleusPointsd(max_points=8, seed=4)(item)["points"], first)
