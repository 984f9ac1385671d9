import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_panoptic_quality

from nucsam_monai.metrics import (
    PanopticQuality,
    aggregated_jaccard_index,
    aggregated_jaccard_index_plus,
    instance_metrics,
    iou,
    matched_ids,
    panoptic_quality,
)
from nucsam_monai.utils.errors import ConfigurationError
from tests.metrics.label_maps import pair_of_discs, pairs_of_label_maps, random_blocks, relabelled
from tests.oracles import metrics_instance as oracle


def equal(found: tuple, expected: tuple, tolerance: float = 1e-12) -> bool:
    return np.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True)


def oracle_of(y: np.ndarray, y_pred: np.ndarray) -> tuple[float, ...]:
    return (oracle.aji(y, y_pred), oracle.aji_plus(y, y_pred), *oracle.panoptic(y, y_pred))


def shifted_squares() -> tuple[np.ndarray, np.ndarray]:
    """A 4 x 4 square predicted one column to the right (IoU 12/20), 2 x 2 missed, 1 x 3 invented."""
    y, y_pred = np.zeros((12, 12), np.int32), np.zeros((12, 12), np.int32)
    y[1:5, 1:5], y_pred[1:5, 2:6] = 4, 9
    y[8:10, 8:10] = 2
    y_pred[11, 0:3] = 1
    return y, y_pred


def test_shifted_squares_by_hand() -> None:
    found = instance_metrics(*shifted_squares())
    assert found.aji == found.aji_plus == 12 / (20 + 4 + 3)
    assert (found.tp, found.fp, found.fn) == (1, 1, 1)
    assert found.dq == 1 / (1 + 0.5 + 0.5)
    assert found.sq == pytest.approx(0.6 / (1 + 1e-6), abs=1e-15)
    assert found.pq == found.dq * found.sq


def test_aji_shares_a_prediction_and_aji_plus_does_not() -> None:
    y = np.array([[1, 1, 1, 2, 2]])
    y_pred = np.array([[7, 7, 7, 7, 7]])
    assert aggregated_jaccard_index(y, y_pred) == (3 + 2) / (5 + 5)
    assert aggregated_jaccard_index_plus(y, y_pred) == 3 / (5 + 2)


def test_aji_tie_takes_the_lowest_predicted_id() -> None:
    # both predictions cover one of the two pixels of the nucleus that they tie for (IoU 1/2, 2/4)
    y = np.array([[1, 1, 1, 0, 0, 0]])
    short_first = np.array([[3, 5, 5, 5, 5, 5]])  # IoU 1/3 with 1 of 3 pixels, 2/6 with 2 of 6
    long_first = np.array([[5, 3, 3, 3, 3, 3]])
    assert aggregated_jaccard_index(y, short_first) == 1 / (3 + 5)
    assert aggregated_jaccard_index(y, long_first) == 2 / (6 + 1)


def test_aji_plus_tie_takes_the_larger_overlap_whatever_the_ids() -> None:
    y = np.array([[1, 1, 1, 0, 0, 0]])
    for y_pred in (np.array([[3, 5, 5, 5, 5, 5]]), np.array([[5, 3, 3, 3, 3, 3]])):
        assert aggregated_jaccard_index_plus(y, y_pred) == 2 / (3 + 6 - 2)


def test_assignment_beats_greedy_matching() -> None:
    # a greedy matcher takes (1, 8) with IoU 3/6 and leaves 2 without a partner
    y = np.array([[1, 1, 1, 1, 2, 2, 0, 0]])
    y_pred = np.array([[9, 8, 8, 8, 8, 8, 0, 0]])
    assert aggregated_jaccard_index_plus(y, y_pred) == pytest.approx(oracle.aji_plus(y, y_pred), abs=1e-15)
    assert aggregated_jaccard_index_plus(y, y_pred) == (1 + 2) / (12 - 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_empties(dtype: type) -> None:
    empty, two = np.zeros((3, 4), dtype), np.array([[1, 0, 0, 2]] * 3, dtype)
    for y_pred, predicted in ((empty, 0), (two, 2)):
        found = instance_metrics(empty, y_pred)
        assert all(math.isnan(value) for value in found[:5])
        assert found[5:] == (0, predicted, 0)
    assert instance_metrics(two, empty) == (0, 0, 0, 0, 0, 0, 0, 2)


def test_zero_sized_images_have_no_nuclei() -> None:
    assert math.isnan(instance_metrics(np.zeros((0, 5), int), np.zeros((0, 5), int)).aji)


def test_images_without_background() -> None:
    y = np.array([[5, 5, 9], [5, 5, 9]], np.uint16)
    y_pred = np.array([[1, 2, 2], [1, 2, 2]], np.uint16)
    assert equal(instance_metrics(y, y_pred), oracle_of(y, y_pred))
    assert instance_metrics(y, y)[:3] == (1, 1, 1)


@settings(max_examples=120, deadline=None)
@given(pairs_of_label_maps())
def test_equals_the_oracle(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert equal(instance_metrics(*pair), oracle_of(*pair))


def test_equals_the_oracle_on_a_thousand_random_pairs() -> None:
    rng = np.random.default_rng(7)
    for _ in range(1000):
        pair = random_blocks(rng), random_blocks(rng)
        assert equal(instance_metrics(*pair), oracle_of(*pair)), pair


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("jitter_px", [1.0, 4.0])
def test_equals_the_dense_assignment_on_crowded_discs(seed: int, jitter_px: float) -> None:
    y, y_pred = pair_of_discs(seed, jitter_px=jitter_px)
    found = instance_metrics(y, y_pred)
    expected = oracle.aji(y, y_pred), oracle.aji_plus_dense(y, y_pred), *oracle.panoptic(y, y_pred)
    assert equal(found, expected)


@settings(max_examples=25, deadline=None)
@given(pairs_of_label_maps())
def test_perfect_prediction(pair: tuple[np.ndarray, np.ndarray]) -> None:
    y = pair[0]
    found = instance_metrics(y, relabelled(y, 0)[0])
    if (y > 0).any():
        assert found[:3] == (1, 1, 1)
        assert found.sq == found.pq == found.tp / (found.tp + 1e-6)
        assert (found.fp, found.fn) == (0, 0)


@settings(max_examples=40, deadline=None)
@given(pairs_of_label_maps(), st.integers(0, 99))
def test_ids_carry_no_meaning(pair: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    y, y_pred = pair
    found = instance_metrics(y, y_pred)
    assert equal(instance_metrics(relabelled(y, seed)[0], y_pred), found)
    # the documented tie rule of AJI reads the order of the predicted ids; nothing else does
    assert equal(instance_metrics(y, relabelled(y_pred, seed)[0])[1:], found[1:])
    assert equal(instance_metrics(y, y_pred[:, ::-1][:, ::-1].copy(order="F")), found)


@settings(max_examples=25, deadline=None)
@given(pairs_of_label_maps())
def test_transposition_changes_nothing(pair: tuple[np.ndarray, np.ndarray]) -> None:
    y, y_pred = pair
    assert equal(instance_metrics(y.T, y_pred.T), instance_metrics(y, y_pred))


@settings(max_examples=40, deadline=None)
@given(pairs_of_label_maps())
def test_bounds_and_symmetry(pair: tuple[np.ndarray, np.ndarray]) -> None:
    y, y_pred = pair
    found, swapped = instance_metrics(y, y_pred), instance_metrics(y_pred, y)
    if not ((y > 0).any() and (y_pred > 0).any()):
        return
    assert 0 <= found.aji <= iou(y, y_pred) + 1e-12
    assert 0 <= found.aji_plus <= iou(y, y_pred) + 1e-12
    assert 0 <= found.pq <= min(found.dq, found.sq)
    # everything but AJI treats prediction and ground truth alike
    assert equal((found.aji_plus, *found[2:5]), (swapped.aji_plus, *swapped[2:5]))
    assert (found.fp, found.fn) == (swapped.fn, swapped.fp)


def test_single_functions_return_the_combined_values() -> None:
    y, y_pred = pair_of_discs(5)
    found = instance_metrics(y, y_pred, match_iou=0.6)
    assert aggregated_jaccard_index(y, y_pred) == found.aji
    assert aggregated_jaccard_index_plus(y, y_pred) == found.aji_plus
    assert panoptic_quality(y, y_pred, match_iou=0.6) == PanopticQuality(*found[2:])
    assert found.tp < instance_metrics(y, y_pred).tp


def test_match_is_strict() -> None:
    y, y_pred = np.array([[1, 1]]), np.array([[1, 0]])
    assert panoptic_quality(y, y_pred).tp == 0
    assert panoptic_quality(y, y_pred, match_iou=0.49).tp == 1


@pytest.mark.parametrize("match_iou", [0.2, 0.4, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_equals_monai(seed: int, match_iou: float) -> None:
    y, y_pred = pair_of_discs(seed, side=64, count=20, jitter_px=2.5)
    tp, fp, fn, iou_sum = compute_panoptic_quality(
        torch.as_tensor(y_pred),
        torch.as_tensor(y),
        match_iou_threshold=match_iou,
        output_confusion_matrix=True,
    ).tolist()
    found = panoptic_quality(y, y_pred, match_iou)
    assert (found.tp, found.fp, found.fn) == (tp, fp, fn)
    assert found.sq * (tp + 1e-6) == pytest.approx(iou_sum, rel=1e-6)


@pytest.mark.parametrize("match_iou", [-0.1, 1.0, math.nan])
def test_impossible_thresholds_are_refused(match_iou: float) -> None:
    with pytest.raises(ConfigurationError, match="match_iou"):
        instance_metrics(np.ones((2, 2), int), np.ones((2, 2), int), match_iou)


GOOD = np.ones((3, 3), np.int32)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (-GOOD, "negative id -1"),
        (GOOD.astype(np.float32), "float32"),
        (GOOD[None], r"\(1, 3, 3\)"),
        (GOOD[:2], r"\(2, 3\)"),
    ],
)
@pytest.mark.parametrize("metric", [instance_metrics, iou])
def test_maps_that_are_not_label_maps_are_refused(metric: object, bad: np.ndarray, words: str) -> None:
    for pair in itertools.permutations((GOOD, bad)):
        with pytest.raises(ConfigurationError, match=words):
            metric(*pair)


def test_bool_masks_are_one_instance() -> None:
    mask = np.array([[True, True, False, True]])
    assert instance_metrics(mask, mask.astype(np.int64) * 70_000)[:3] == (1, 1, 1)


def test_only_pairs_above_the_threshold_match():
    true = np.array([[1, 1, 0, 7, 7, 7]])
    predicted = np.array([[4, 0, 0, 9, 9, 0]])
    assert matched_ids(true, predicted) == ({7}, {9})
    assert matched_ids(true, predicted, match_iou=0.4) == ({1, 7}, {4, 9})
    assert matched_ids(true, np.zeros_like(true)) == (set(), set())


@given(pairs_of_label_maps(), st.sampled_from([0.3, 0.5, 0.75]))
def test_matched_ids_are_those_that_panoptic_quality_counts(pair, match_iou):
    matched_true, matched_predicted = matched_ids(*pair, match_iou)
    expected = panoptic_quality(*pair, match_iou)
    assert len(matched_true) == len(matched_predicted) == expected.tp
    assert [
        len(set(np.unique(labels[labels > 0])) - ids)
        for labels, ids in zip(pair, (matched_true, matched_predicted), strict=True)
    ] == [
        expected.fn,
        expected.fp,
    ]
