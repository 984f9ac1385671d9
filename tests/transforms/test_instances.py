import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import MetaTensor

from nucsam_monai.transforms import (
    DistanceTargetd,
    ForegroundMaskd,
    LabelMapToPredictiond,
    NucleusDistanced,
    NucleusPointsd,
    ProbabilityToInstancesd,
    nucleus_distance,
    nucleus_points,
)
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles import learned_instances as oracle

LABEL_MAPS = hnp.arrays(
    np.int32,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.sampled_from([0, 0, 1, 2, 5, 70_000]),
)
KINDS = [torch.as_tensor, MetaTensor, np.asarray]


@pytest.mark.parametrize("kind", KINDS)
def test_mask_is_1_on_every_nucleus(kind):
    instances = kind(np.array([[[0, 3, 3, 70_000, 0]]], dtype=np.int32))
    item = ForegroundMaskd()({"instances": instances, "id": "a"})
    assert type(item["label"]) is type(instances)
    np.testing.assert_array_equal(item["label"], [[[0, 1, 1, 1, 0]]])
    assert item["label"].dtype in (torch.float32, np.float32)
    assert item["instances"] is instances
    assert ForegroundMaskd(output_key="mask")({"instances": instances})["mask"].shape == (1, 1, 5)


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


@pytest.mark.parametrize("kind", KINDS)
def test_instances_are_the_8_connected_components(kind):
    probability = np.zeros((1, 4, 7), dtype=np.float32)
    probability[0, 0, 0] = probability[0, 1, 1] = 0.5  # touch at a corner; the threshold is foreground
    probability[0, 1, 3] = 0.499
    probability[0, 3, 6] = 1.0
    nuclei = ProbabilityToInstancesd()({"pred": kind(probability)})["pred"]
    instances = nuclei.instances
    assert (instances.shape, instances.dtype) == ((4, 7), np.int32)
    assert instances[0, 0] == instances[1, 1] > 0
    assert instances[1, 3] == 0
    assert np.unique(instances).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(nuclei.foreground, probability[0])
    assert nuclei.table["score"].tolist() == [0.5, 1.0]


def test_no_foreground_gives_no_instances():
    item = ProbabilityToInstancesd("found", threshold=0.9)({"found": torch.full((1, 3, 5), 0.8)})
    assert not item["found"].instances.any()
    assert item["found"].instances.shape == (3, 5)


@pytest.mark.parametrize("shape", [(2, 3, 3), (3, 3), (1, 1, 3, 3)])
def test_several_masks_are_refused(shape):
    with pytest.raises(ConfigurationError, match=r"\(1, H, W\)"):
        ProbabilityToInstancesd()({"pred": torch.zeros(shape)})


@pytest.mark.parametrize("kind", KINDS)
def test_touching_nuclei_are_split_on_request(kind):
    y, x = np.mgrid[:20, :40]
    probability = np.where((y - 10) ** 2 + np.minimum((x - 11) ** 2, (x - 28) ** 2) <= 81, 0.9, 0.1)[None]
    for options, nuclei in (
        ({}, 1),
        ({"instances": "watershed"}, 2),
        ({"instances": "watershed", "min_distance_px": 20}, 1),
        ({"instances": "watershed", "threshold": 0.95}, 0),
    ):
        found = ProbabilityToInstancesd(**options)({"pred": kind(probability)})["pred"]
        assert (found.instances.shape, found.instances.dtype) == ((20, 40), np.int32)
        assert found.instances.max() == len(found) == nuclei


@pytest.mark.parametrize("kind", KINDS)
def test_learned_instances_score_their_foreground_times_the_height_of_their_marker(kind):
    y, x = np.mgrid[:20, :40]
    inside = (y - 10) ** 2 + np.minimum((x - 11) ** 2, (x - 28) ** 2) <= 81
    foreground = np.where(inside, np.where(x < 20, 0.9, 0.7), 0.1)
    distance = inside * (1 - np.minimum(np.hypot(y - 10, x - 11), np.hypot(y - 10, x - 28)) / 10)
    transform = ProbabilityToInstancesd(instances="distance", distance_rule={"min_area_px": 5})
    item = transform({"pred": kind(np.stack([foreground, distance]).astype(np.float32))})
    nuclei = item["pred"]
    assert nuclei.instances.max() == len(nuclei) == 2
    assert nuclei.foreground is not None
    for row in nuclei.table:
        own = nuclei.instances == row["id"]
        assert row["score"] == pytest.approx(foreground[own].mean() * distance[own].max(), abs=1e-5)


def test_no_foreground_has_no_scores():
    transform = ProbabilityToInstancesd(instances="distance")
    assert len(transform({"pred": torch.zeros(2, 5, 6)})["pred"]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_label_maps_with_scores_become_nuclei(kind):
    instances, score = np.array([[[0, 2, 2, 1]]], np.int32), np.array([[[0, 0.5, 0.5, 0.75]]], np.float32)
    nuclei = LabelMapToPredictiond("pred")({"pred": {"instances": kind(instances), "score": kind(score)}})[
        "pred"
    ]
    np.testing.assert_array_equal(nuclei.instances, instances[0])
    assert nuclei.table["score"].tolist() == [0.75, 0.5]


@pytest.mark.parametrize(
    "options",
    [
        {"instances": "contours"},
        {"min_distance_px": 0},
        {"threshold": "low"},
        {"distance_rule": {"depth": 1}},
    ],
)
def test_unknown_rules_of_instances_are_refused(options):
    with pytest.raises(
        ConfigurationError, match=r"contours|min_distance_px 0|threshold 'low'|depth.*marker_threshold"
    ):
        ProbabilityToInstancesd(**options)


@settings(max_examples=100, deadline=None)
@given(LABEL_MAPS)
def test_distance_is_that_to_the_nearest_pixel_outside_of_the_nucleus(instances):
    found = nucleus_distance(instances)
    assert (found.dtype, found.shape) == (np.float32, instances.shape)
    np.testing.assert_allclose(found, oracle.nucleus_distance(instances), atol=1e-6)
    np.testing.assert_array_equal(found > 0, instances > 0)
    for nucleus in set(instances.ravel()) - {0}:
        assert found[instances == nucleus].max() == 1


def test_distances_are_the_same_wherever_an_image_lies_in_memory():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:60, :60]
    instances = np.where((y - 30) ** 2 + (x - 30) ** 2 <= 400, 1, 0).astype(np.int32)
    first, kept = nucleus_distance(instances), []
    for _ in range(40):
        kept.append(rng.random(rng.integers(1, 999)))  # moves what is allocated next
        np.testing.assert_array_equal(nucleus_distance(instances), first)


def test_the_border_of_the_image_does_not_bound_a_nucleus():
    instances = np.zeros((1, 1, 9), dtype=np.int32)
    instances[..., :5] = 3
    item = NucleusDistanced(output_key="depth")({"instances": torch.from_numpy(instances)})
    np.testing.assert_allclose(item["depth"][0, 0], [1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_distance_map_is_the_last_channel_of_the_target(kind):
    instances = kind(np.array([[[0, 4, 4, 4, 0]]], dtype=np.float32))  # resampling makes floats
    label = kind(np.array([[[0, 1, 1, 1, 0]]], dtype=np.float32))
    item = {"instances": instances, "label": label}
    target = DistanceTargetd()(item)["label"]
    np.testing.assert_allclose(target, [[[0, 1, 1, 1, 0]], [[0, 0.5, 1, 0.5, 0]]], atol=1e-6)
    assert target.dtype == torch.float32
    known = torch.full((1, 1, 5), 0.25)
    assert torch.equal(DistanceTargetd()({**item, "distance": known})["label"][1:], known)


@pytest.mark.parametrize("kind", KINDS)
def test_a_learned_distance_parts_touching_nuclei(kind):
    foreground = np.full((1, 3, 9), 0.8, dtype=np.float32)
    depth = np.broadcast_to([0.2, 0.9, 0.9, 0.4, 0.1, 0.3, 0.7, 0.8, 0.3], foreground.shape)
    probability = kind(np.concatenate([foreground, depth.astype(np.float32)]))
    for options, nuclei in (
        ({}, 2),
        ({"distance_rule": {"marker_threshold": 0.85}}, 1),
        ({"distance_rule": {"min_area_px": 14}}, 1),
        ({"threshold": 0.9}, 0),
    ):
        rule = {"min_marker_px": 1, "min_area_px": 1} | options.pop("distance_rule", {})
        transform = ProbabilityToInstancesd(instances="distance", distance_rule=rule, **options)
        item = transform({"pred": probability})
        assert item["pred"].instances.shape == (3, 9)
        np.testing.assert_array_equal(item["pred"].foreground, foreground[0])
        assert item["pred"].instances.max() == nuclei


def test_maps_that_do_not_fit_the_rule_are_refused():
    with pytest.raises(ConfigurationError, match=r"\(2, H, W\) for instances 'distance'"):
        ProbabilityToInstancesd(instances="distance")({"pred": torch.zeros(1, 3, 3)})
