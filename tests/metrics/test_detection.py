import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.metrics import (
    GreedyDetection,
    HovernetDetection,
    LabelPair,
    centroids_xy,
    match_points,
    match_points_hungarian,
    matching_radius_px,
)
from nucsam_monai.metrics.detection import DetectionAccumulator
from nucsam_monai.utils.errors import ConfigurationError
from tests.metrics.label_maps import pair_of_discs, pairs_of_label_maps
from tests.oracles import metrics_points as oracle

RADIUS, CLASSES = 12.0, 3
Image = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
NOTHING = np.zeros((0, 2)), np.zeros(0, int)


def image(seed: int, most: int = 7) -> Image:
    rng = np.random.default_rng(seed)
    n, m = rng.integers(0, most, 2)
    return (
        rng.uniform(0, 40, (n, 2)),
        rng.integers(0, CLASSES, n),
        rng.uniform(0, 40, (m, 2)),
        rng.integers(0, CLASSES, m),
        rng.integers(0, 4, m) / 4,
    )


def scored(metric: DetectionAccumulator, images: list[Image]) -> list[tuple[float, ...]]:
    for one in images:
        metric.update(*one)
    result = metric.result()
    return [row[:3] for row in (result.detection, *result.classes)]


def by_hand() -> Image:
    """Three nuclei: one found, one found with another class, one missed; one false detection."""
    true_xy, pred_xy = [[0, 0], [50, 0], [100, 0]], [[1, 0], [50, 3], [200, 0]]
    return np.array(true_xy), np.array([0, 0, 1]), np.array(pred_xy), np.array([0, 1, 1]), np.ones(3)


def test_hovernet_by_hand() -> None:
    metric = HovernetDetection(2, RADIUS)
    metric.update(*by_hand())
    result = metric.result()
    assert result.detection == (2 / 3, 2 / 3, 2 / 3, 2, 1, 1)
    # class 0: TP 1, FN 1; class 1: FP 1, one unpaired prediction, one unpaired nucleus
    assert result.classes[0] == (1 / 1, 1 / 3, 2 / 4, 1, 0, 1)
    assert result.classes[1] == (0 / 3, 0 / 1, 0 / 4, 0, 2, 1)


def test_greedy_by_hand() -> None:
    metric = GreedyDetection(2, RADIUS)
    metric.update(*by_hand())
    result = metric.result()
    assert result.detection == (2 / 3, 2 / 3, 2 / 3, 2, 1, 1)
    assert result.classes == ((1.0, 1 / 2, 2 / 3, 1, 0, 1), (0.0, 0.0, 0.0, 0, 2, 1))


def test_greedy_lets_the_most_confident_choose_first() -> None:
    # the confident detection takes the only nucleus in reach of the other
    arguments = [[0, 0], [15, 0]], [0, 0], [[7, 0], [-6, 0]], [0, 0]
    confident_first, confident_last = GreedyDetection(1, RADIUS), GreedyDetection(1, RADIUS)
    confident_first.update(*arguments, scores=[0.9, 0.1])
    confident_last.update(*arguments, scores=[0.1, 0.9])
    assert confident_first.result().detection.tp == 1
    assert confident_last.result().detection.tp == 2
    hovernet = HovernetDetection(1, RADIUS)
    hovernet.update(*arguments, scores=[0.9, 0.1])
    assert hovernet.result().detection.tp == 2


@pytest.mark.parametrize("match", [match_points, match_points_hungarian])
def test_hovernet_equals_the_oracle(match) -> None:
    for first in range(0, 120, 4):
        images = [image(seed) for seed in range(first, first + 4)]
        pairs = [{(int(i), int(j)) for i, j in match(one[0], one[2], RADIUS)} for one in images]
        plain = [(p, one[1].tolist(), one[3].tolist()) for p, one in zip(pairs, images, strict=True)]
        found = scored(HovernetDetection(CLASSES, RADIUS, match), images)
        np.testing.assert_allclose(found, oracle.hovernet_scores(plain, CLASSES), rtol=1e-15)


def test_published_protocol_is_the_default() -> None:
    # the far detection pulls the near one away from its nucleus
    metric = HovernetDetection(1, RADIUS)
    metric.update([[0, 0], [20, 0]], [0, 0], [[15, 0], [45, 0]], [0, 0])
    assert metric.result().detection.tp == 0


def test_greedy_equals_the_oracle() -> None:
    for first in range(0, 200, 4):
        images = [image(seed) for seed in range(first, first + 4)]
        expected = []
        for c in (None, *range(CLASSES)):
            tp = predicted = present = 0
            for true_xy, true, pred_xy, pred, scores in images:
                t, p = (np.full(len(v), True) if c is None else v == c for v in (true, pred))
                tp += len(oracle.greedy(true_xy[t], pred_xy[p], scores[p], RADIUS))
                predicted, present = predicted + p.sum(), present + t.sum()
            expected.append(oracle.scores_of(tp, predicted - tp, present - tp))
        np.testing.assert_allclose(scored(GreedyDetection(CLASSES, RADIUS), images), expected, rtol=1e-15)


@pytest.mark.parametrize("protocol", [HovernetDetection, GreedyDetection])
def test_perfect_prediction_scores_one(protocol) -> None:
    xy, classes, *_ = image(3, most=20)
    metric = protocol(CLASSES, RADIUS)
    metric.update(xy, classes, xy, classes)
    result = metric.result()
    assert result.detection == (1, 1, 1, len(xy), 0, 0)
    for c, row in enumerate(result.classes):
        assert row[:3] == (1, 1, 1) if c in classes else all(map(math.isnan, row[:3]))


@pytest.mark.parametrize("protocol", [HovernetDetection, GreedyDetection])
def test_merged_parts_equal_the_whole(protocol) -> None:
    whole, *parts = (protocol(CLASSES, RADIUS) for _ in range(3))
    for seed in range(10):
        whole.update(*image(seed))
        parts[seed % 2].update(*image(seed))
    parts[0].merge(parts[1])
    np.testing.assert_equal(parts[0].result(), whole.result())


@pytest.mark.parametrize("protocol", [HovernetDetection, GreedyDetection])
def test_empty_images_add_only_what_is_wrong(protocol) -> None:
    xy, classes = [[4, 4], [30, 4]], [0, 2]
    metric = protocol(CLASSES, RADIUS)
    assert all(math.isnan(value) for value in metric.result().detection[:3])
    metric.update(*NOTHING, *NOTHING)
    metric.update([], [], xy, classes)
    metric.update(xy, classes, [], [])
    result = metric.result()
    assert result.detection == (0, 0, 0, 0, 2, 2)
    assert [row[3:] for row in result.classes] == [(0, 1, 1), (0, 0, 0), (0, 1, 1)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"true_classes": [0]}, "true_classes: expected 2 values"),
        ({"pred_classes": [0, 3]}, r"pred_classes: found class ids \[3\], expected 0 to 2"),
        ({"true_classes": [-1, 0]}, r"\[-1\]"),
        ({"true_classes": [0.0, 1.0]}, "integer class ids"),
        ({"scores": [0.5]}, "scores: expected 2 values"),
        ({"scores": [0.5, math.nan]}, "NaN"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, words: str) -> None:
    xy, classes = [[4, 4], [30, 4]], [0, 2]
    arguments = {"true_xy": xy, "true_classes": classes, "pred_xy": xy, "pred_classes": classes}
    metric = GreedyDetection(CLASSES, RADIUS)
    with pytest.raises(ConfigurationError, match=words):
        metric.update(**{**arguments, **change})
    assert metric.result().detection.tp == 0


def test_different_protocols_do_not_merge() -> None:
    metric = HovernetDetection(CLASSES, RADIUS)
    for other in (
        GreedyDetection(CLASSES, RADIUS),
        HovernetDetection(CLASSES, 6),
        HovernetDetection(2, RADIUS),
        HovernetDetection(CLASSES, RADIUS, match_points),
    ):
        with pytest.raises(ConfigurationError, match="protocols differ"):
            metric.merge(other)
    for bad in ({"class_count": 0, "radius_px": 12}, {"class_count": 2, "radius_px": 0}):
        with pytest.raises(ConfigurationError, match=r"class_count|radius_px"):
            GreedyDetection(**bad)


RADIUS = 12.0


def points_of(rng: np.random.Generator, most: int = 6, side: float = 50) -> np.ndarray:
    return rng.uniform(0, side, (rng.integers(0, most), 2))


def as_set(pairs: np.ndarray) -> set[tuple[int, int]]:
    assert pairs.dtype == np.int64
    assert pairs.shape[1:] == (2,)
    return {(int(i), int(j)) for i, j in pairs}


def crowd(seed: int, count: int, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Nuclei of which a tenth is missed, and as many false detections."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, side, (count, 2))
    found = truth[rng.random(count) < 0.9]
    found = found + rng.normal(0, 2, found.shape)
    return truth, rng.permutation(np.concatenate((found, rng.uniform(0, side, (count // 10, 2)))))


@settings(max_examples=60, deadline=None)
@given(pairs_of_label_maps())
def test_centroids_equal_the_mean_of_the_pixels(pair: tuple[np.ndarray, np.ndarray]) -> None:
    y, y_pred = pair
    expected = oracle.centroids(y)
    found = centroids_xy(y)
    assert found.ids.tolist() == list(expected)
    np.testing.assert_allclose(found.xy, np.array(list(expected.values())).reshape(-1, 2), rtol=1e-14)
    both = LabelPair(y, y_pred)
    np.testing.assert_array_equal(both.y_xy, found.xy)
    np.testing.assert_array_equal(both.y_pred_xy, centroids_xy(y_pred).xy)


def test_centroids_of_a_transposed_map_are_swapped() -> None:
    labels = pair_of_discs(0)[0]
    np.testing.assert_allclose(centroids_xy(labels.T).xy, centroids_xy(labels).xy[:, ::-1], rtol=1e-14)


def test_a_run_ends_with_its_row() -> None:
    labels = np.array([[0, 0, 3], [3, 0, 0]])
    assert centroids_xy(labels).xy.tolist() == [[1.0, 0.5]]


def test_images_larger_than_a_block_are_read_whole() -> None:
    labels = np.zeros((700, 900), np.uint16)
    labels[100:600, 7] = 9
    labels[699, 890:] = 4
    found = centroids_xy(labels)
    assert found.ids.tolist() == [4, 9]
    assert found.xy.tolist() == [[894.5, 699.0], [7.0, 349.5]]


def test_centroids_need_a_label_map() -> None:
    assert centroids_xy(np.zeros((0, 4), int)).xy.shape == (0, 2)
    with pytest.raises(ConfigurationError, match="negative id -2"):
        centroids_xy([[-2, 0]])


def test_a_far_pair_drags_a_near_one_apart_in_the_protocol_only() -> None:
    # 15 + 25 pixels for two pairs beyond the radius are less than 5 within it + 45
    truth, prediction = [[0, 0], [20, 0]], [[15, 0], [45, 0]]
    assert as_set(match_points(truth, prediction, RADIUS)) == {(1, 0)}
    assert as_set(match_points_hungarian(truth, prediction, RADIUS)) == set()


def test_the_protocol_finds_some_percent_fewer_pairs_in_images_with_both_errors() -> None:
    images = [crowd(seed, 47, 256) for seed in range(60)]
    near, protocol = (
        sum(len(match(*image, RADIUS)) for image in images)
        for match in (match_points, match_points_hungarian)
    )
    assert 0.94 < protocol / near < 0.98


def test_random_points_equal_the_trial_of_all_assignments() -> None:
    rng = np.random.default_rng(1)
    for _ in range(150):
        truth, prediction = points_of(rng), points_of(rng)
        _, cut = oracle.cheapest_pairs(truth, prediction, RADIUS)
        expected = {(i, j) for i, j in cut if math.dist(truth[i], prediction[j]) < RADIUS}
        assert as_set(match_points(truth, prediction, RADIUS)) == expected
        protocol = as_set(match_points_hungarian(truth, prediction, RADIUS))
        assert protocol == oracle.hungarian(truth, prediction, RADIUS)


@pytest.mark.parametrize("side", [20, 60, 150, 500])
def test_cut_off_equals_the_dense_problem(side: float) -> None:
    for seed in range(4):
        truth, prediction = crowd(seed, 120, side)
        expected = oracle.cut_off(truth, prediction, RADIUS)
        assert as_set(match_points(truth, prediction, RADIUS)) == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_pairs_are_within_the_radius_and_one_to_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, prediction = points_of(rng, 30), points_of(rng, 30)
    for match in (match_points, match_points_hungarian):
        pairs = match(truth, prediction, RADIUS)
        assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
        assert (np.linalg.norm(truth[pairs[:, 0]] - prediction[pairs[:, 1]], axis=1) <= RADIUS).all()
        assert pairs.tolist() == sorted(pairs.tolist())
        swapped = match(prediction, truth, RADIUS)
        assert as_set(swapped[:, ::-1]) == as_set(pairs)
        order = rng.permutation(len(truth))
        renamed = match(truth[order], prediction, RADIUS)
        assert {(int(order[i]), j) for i, j in as_set(renamed)} == as_set(pairs)


def test_the_radius_itself_counts() -> None:
    for match, x in itertools.product((match_points, match_points_hungarian), (12.0, 12.001)):
        assert len(match([[0, 0]], [[x, 0]], RADIUS)) == (x <= RADIUS)


def test_coinciding_points_pair() -> None:
    assert len(match_points([[3, 3]] * 4, [[3, 3]] * 3, RADIUS)) == 3


def test_no_points_have_no_pairs() -> None:
    some = [[1.0, 2.0]]
    for match in (match_points, match_points_hungarian):
        for pair in (([], some), (some, []), ([], [])):
            assert match(*pair, RADIUS).shape == (0, 2)


def test_many_points() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 6000, (30_000, 2))  # 1,200 pixels per nucleus
    pairs = match_points(truth, rng.permutation(truth) + rng.normal(0, 1, truth.shape), RADIUS)
    assert len(pairs) > 29_500


def test_a_radius_far_too_large_needs_no_dense_matrix() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.uniform(0, 500, (2, 3000, 2))  # every point has about 5 within the radius
    pairs = match_points(truth, prediction, RADIUS)
    tracemalloc.start()
    again = match_points(prediction, truth, RADIUS)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 3000 * 3000 * 8 / 4
    assert as_set(again[:, ::-1]) == as_set(pairs)


def test_what_is_not_a_point_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"true_xy.*\(2, 3\)"):
        match_points(np.zeros((2, 3)), [[0, 0]], RADIUS)
    with pytest.raises(ConfigurationError, match="pred_xy: 1 of 2 points are not finite"):
        match_points([[0, 0]], [[0, 0], [math.nan, 1]], RADIUS)
    with pytest.raises(ConfigurationError, match="use match_points"):
        match_points_hungarian(np.zeros((20_000, 2)), np.zeros((20_000, 2)), RADIUS)
    for radius in (0, -1, math.inf, math.nan):
        with pytest.raises(ConfigurationError, match="radius_px"):
            match_points([[0, 0]], [[0, 0]], radius)


def test_radius_follows_the_magnification() -> None:
    assert matching_radius_px(40) == matching_radius_px(mpp=0.25) == 12
    assert matching_radius_px(20) == matching_radius_px(mpp=0.5) == 6
    assert matching_radius_px(40, mpp=0.5) == 6
    with pytest.raises(ConfigurationError, match="neither"):
        matching_radius_px()
    with pytest.raises(ConfigurationError, match="magnification"):
        matching_radius_px(0)
