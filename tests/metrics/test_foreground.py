import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from monai.metrics import compute_hausdorff_distance
from sklearn.metrics import f1_score, jaccard_score

from nucsam_monai.metrics import (
    average_foreground,
    dice,
    f1_mean_pr,
    foreground_counts,
    foreground_metrics,
    hausdorff_distance,
    iou,
    precision_recall,
    smoothed_overlap,
    threshold_mean,
    weighted_scores,
)
from nucsam_monai.metrics.foreground import hausdorff_distances
from nucsam_monai.metrics.pair import LabelPair
from nucsam_monai.utils.errors import ConfigurationError
from tests.metrics.label_maps import pair_of_discs, pairs_of_label_maps
from tests.oracles import metrics_foreground as oracle


def oracle_of(y: np.ndarray, y_pred: np.ndarray) -> tuple[float, ...]:
    pixel_metrics = (oracle.dice, oracle.iou, oracle.precision, oracle.recall)
    return (
        *(metric(y, y_pred) for metric in pixel_metrics),
        oracle.hausdorff(y, y_pred),
        oracle.hausdorff(y, y_pred, 95),
    )


def test_shifted_square_by_hand() -> None:
    y, y_pred = np.zeros((10, 10), int), np.zeros((10, 10), int)
    y[2:6, 2:6], y_pred[2:6, 4:9] = 1, 1
    found = foreground_metrics(y, y_pred)
    assert found.dice == 16 / 36
    assert found.iou == 8 / 28
    assert (found.precision, found.recall) == (8 / 20, 8 / 16)
    assert found.hd == 3.0


def test_empties_follow_the_table() -> None:
    empty, some = np.zeros((3, 4), np.int32), np.array([[0, 0, 7, 0]] * 3, np.int32)
    assert foreground_metrics(empty, empty) == (1, 1, 1, 1, 0, 0)
    for pair in ((empty, some), (some, empty)):
        assert foreground_metrics(*pair) == (0, 0, 0, 0, 5, 5)


def test_full_images() -> None:
    full = np.ones((4, 5), bool)
    assert foreground_metrics(full, full) == (1, 1, 1, 1, 0, 0)


@settings(max_examples=100, deadline=None)
@given(pairs_of_label_maps())
def test_equals_the_oracle(pair: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(foreground_metrics(*pair), oracle_of(*pair), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_oracle_on_discs(seed: int) -> None:
    pair = pair_of_discs(seed, side=64, count=12, jitter_px=3.0)
    np.testing.assert_allclose(foreground_metrics(*pair), oracle_of(*pair), rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(pairs_of_label_maps())
def test_symmetries(pair: tuple[np.ndarray, np.ndarray]) -> None:
    y, y_pred = pair
    found = foreground_metrics(y, y_pred)
    swapped, transposed = foreground_metrics(y_pred, y), foreground_metrics(y.T, y_pred.T)
    np.testing.assert_allclose(transposed, found, rtol=0, atol=1e-12)
    assert (swapped.dice, swapped.iou, swapped.hd, swapped.hd95) == (
        found.dice,
        found.iou,
        found.hd,
        found.hd95,
    )
    assert (swapped.precision, swapped.recall) == (found.recall, found.precision)
    assert found.hd95 <= found.hd
    assert found.dice == pytest.approx(2 * found.iou / (1 + found.iou), abs=1e-12)


def test_single_functions_return_the_combined_values() -> None:
    y, y_pred = pair_of_discs(3, side=64, count=12)
    found = foreground_metrics(y, y_pred)
    assert (dice(y, y_pred), iou(y, y_pred), *precision_recall(y, y_pred)) == found[:4]
    assert (hausdorff_distance(y, y_pred), hausdorff_distance(y, y_pred, percentile=95)) == found[4:]


@pytest.mark.parametrize("percentile", [None, 95, 50, 12.5])
@pytest.mark.parametrize("seed", range(2))
def test_hausdorff_equals_monai(seed: int, percentile: float | None) -> None:
    y, y_pred = (labels > 0 for labels in pair_of_discs(seed, side=64, count=8, jitter_px=4.0))
    y[0, :9] = True  # a part on the image border
    expected = compute_hausdorff_distance(
        torch.as_tensor(y_pred)[None, None],
        torch.as_tensor(y)[None, None],
        include_background=True,
        percentile=percentile,
    )
    assert hausdorff_distance(y, y_pred, percentile) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("percentile", [0, -1, 100.5, math.nan])
def test_impossible_percentiles_are_refused(percentile: float) -> None:
    with pytest.raises(ConfigurationError, match="percentile"):
        hausdorff_distances(LabelPair(np.ones((2, 2), int), np.ones((2, 2), int)), [95, percentile])


def test_f1_uses_the_means_over_images() -> None:
    assert f1_mean_pr([1.0, 0.0], [0.5, 0.5]) == 0.5
    assert f1_mean_pr([1.0, 0.2], [0.2, 1.0]) == pytest.approx(0.6)  # the mean of the images' F1 is 1/3
    assert f1_mean_pr([0.0], [0.0]) == 0.0


@pytest.mark.parametrize(("precisions", "recalls"), [([], []), ([1.0], [1.0, 0.5]), (1.0, 1.0)])
def test_f1_needs_a_pair_per_image(precisions: object, recalls: object) -> None:
    with pytest.raises(ConfigurationError, match="one precision and one recall per image"):
        f1_mean_pr(precisions, recalls)


EMPTY, SOME = np.zeros((3, 4), int), np.array([[0, 0, 7, 0]] * 3)


def test_weighted_by_hand() -> None:
    # background 2 of 4: IoU 1/3, F1 2/4; foreground likewise
    assert weighted_scores([[1, 1, 0, 0]], [[0, 1, 1, 0]]) == (0.5, pytest.approx(1 / 3))
    assert weighted_scores(EMPTY, EMPTY) == (1, 1)
    assert weighted_scores(EMPTY, SOME) == (pytest.approx(2 * 9 / 21), pytest.approx(9 / 12))
    assert weighted_scores(SOME > 9, np.ones((3, 4), bool)) == (0, 0)
    assert all(map(math.isnan, weighted_scores(np.zeros((0, 3), int), np.zeros((0, 3), int))))


@settings(max_examples=40, deadline=None)
@given(pairs_of_label_maps())
def test_weighted_equals_scikit_learn(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, prediction = ((labels > 0).ravel() for labels in pair)
    expected = [
        score(truth, prediction, average="weighted", zero_division=0.0) for score in (f1_score, jaccard_score)
    ]
    np.testing.assert_allclose(weighted_scores(*pair), expected, atol=1e-12)


def test_smoothing_by_hand() -> None:
    assert smoothed_overlap([[1, 1, 0, 0]], [[0, 1, 1, 0]]) == (3 / 5, 2 / 4)
    assert smoothed_overlap(EMPTY, EMPTY) == (1, 1)
    assert smoothed_overlap(EMPTY, SOME) == smoothed_overlap(SOME, EMPTY) == (1 / 4, 1 / 4)
    large = np.zeros((300, 300), bool), np.zeros((300, 300), bool)
    large[0][:200], large[1][50:220] = True, True
    assert smoothed_overlap(*large) == pytest.approx((dice(*large), iou(*large)), abs=1e-4)
    with pytest.raises(ConfigurationError, match="smooth"):
        smoothed_overlap(SOME, SOME, smooth=0)


def test_thresholds_by_hand() -> None:
    y, probability = np.array([[1, 1, 0, 0]]), np.array([[0.95, 0.4, 0.6, 0.3]])
    # above 0.1: all four; 0.3: three; 0.5: one right, one wrong; 0.7 and 0.9: one right
    found = threshold_mean(y, probability)
    assert found.iou == pytest.approx((2 / 4 + 2 / 3 + 1 / 3 + 1 / 2 + 1 / 2) / 5)
    assert found.dice == pytest.approx((4 / 6 + 4 / 5 + 2 / 4 + 2 / 3 + 2 / 3) / 5)
    assert threshold_mean(y, y.astype(np.float32)) == (1, 1)
    assert threshold_mean(EMPTY, EMPTY.astype(float)) == (1, 1)


@pytest.mark.parametrize(
    ("probability", "thresholds", "words"),
    [
        ([[1.5]], [0.5], "probability"),
        ([[math.nan]], [0.5], "probability"),
        ([[0.5]], [1.0], "thresholds"),
        ([[0.5]], [], "thresholds"),
        ([[0.5, 0.5]], [0.5], "shape"),
    ],
)
def test_impossible_probabilities_are_refused(probability, thresholds, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        threshold_mean([[1]], probability, thresholds)


def test_average_over_images_is_the_mean_of_the_single_functions() -> None:
    pairs = [pair_of_discs(seed, side=48, count=6) for seed in range(3)]
    found = average_foreground([foreground_counts(*pair) for pair in pairs])
    precisions, recalls = zip(*(precision_recall(*pair) for pair in pairs), strict=True)
    assert found.dice == pytest.approx(np.mean([dice(*pair) for pair in pairs]))
    assert found.iou == pytest.approx(np.mean([iou(*pair) for pair in pairs]))
    assert found.f1_mean_pr == pytest.approx(f1_mean_pr(precisions, recalls))
    assert (found.images, found.skipped_images) == (3, 0)


def test_average_over_the_data_set_is_the_metric_of_one_large_image() -> None:
    pairs = [pair_of_discs(seed, side=48, count=6) for seed in range(3)]
    found = average_foreground([foreground_counts(*pair) for pair in pairs], average="dataset")
    one = [np.concatenate(maps) for maps in zip(*pairs, strict=True)]
    assert found[:4] == pytest.approx((dice(*one), iou(*one), *precision_recall(*one)))


def test_empty_policies() -> None:
    counts = [foreground_counts(*pair) for pair in ((EMPTY, EMPTY), (EMPTY, SOME), (SOME, SOME))]
    scored, skipped = average_foreground(counts), average_foreground(counts, empty="skip")
    assert (scored.dice, scored.skipped_images) == (pytest.approx(2 / 3), 0)
    assert (skipped.dice, skipped.skipped_images, skipped.images) == (1 / 2, 1, 3)
    nothing = average_foreground(counts[:1], empty="skip")
    assert math.isnan(nothing.dice)
    assert nothing.skipped_images == 1
    assert average_foreground(counts[:1], average="dataset").dice == 1


@pytest.mark.parametrize("options", [{"average": "pixel"}, {"empty": "drop"}])
def test_unknown_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="expected one of"):
        average_foreground([], **options)
