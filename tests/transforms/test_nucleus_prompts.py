import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import MetaTensor

from nucsam_monai.transforms import (
    NucleusPromptsd,
    nucleus_points,
    prompt_with_neighbours,
    random_points,
)
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
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


def test_nuclei_are_drawn_anew_in_every_call_and_repeatably():
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
    with pytest.raises(DatasetError, match=r"no class for instances \[8\]"):
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
