import math

import numpy as np
import pytest

from nucsam_monai.metrics import GreedyDetection, HovernetDetection, match_points, match_points_hungarian
from nucsam_monai.metrics.detection import DetectionAccumulator
from nucsam_monai.utils.errors import ConfigurationError
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
