from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings

from nucsam_monai import metrics
from nucsam_monai.metrics import ContingencyTable, EvaluationSample, LabelPair, contingency_table, evaluate
from nucsam_monai.metrics import pair as module
from nucsam_monai.utils.errors import ConfigurationError
from tests.metrics.label_maps import pairs_of_label_maps


def counted_pixel_by_pixel(y: np.ndarray, y_pred: np.ndarray) -> tuple[dict, dict, dict]:
    areas, predicted_areas, overlaps = {}, {}, {}
    for i, j in zip(y.ravel().tolist(), y_pred.ravel().tolist(), strict=True):
        areas[i] = areas.get(i, 0) + 1
        predicted_areas[j] = predicted_areas.get(j, 0) + 1
        if i and j:
            overlaps[i, j] = overlaps.get((i, j), 0) + 1
    areas.pop(0, None)
    predicted_areas.pop(0, None)
    return areas, predicted_areas, overlaps


@settings(max_examples=120, deadline=None)
@given(pairs_of_label_maps())
def test_counts_every_pixel(pair: tuple[np.ndarray, np.ndarray]) -> None:
    table = contingency_table(*pair)
    areas, predicted_areas, overlaps = counted_pixel_by_pixel(*pair)
    assert dict(zip(table.y_ids.tolist(), table.y_areas_px.tolist(), strict=True)) == areas
    assert (
        dict(zip(table.y_pred_ids.tolist(), table.y_pred_areas_px.tolist(), strict=True)) == predicted_areas
    )
    rows, columns = table.y_ids[table.overlap_rows], table.y_pred_ids[table.overlap_columns]
    found = dict(
        zip(zip(rows.tolist(), columns.tolist(), strict=True), table.overlap_areas_px.tolist(), strict=True)
    )
    assert found == overlaps
    assert list(found) == sorted(found)
    assert (table.y_ids.dtype, table.y_pred_ids.dtype) == (pair[0].dtype, pair[1].dtype)


def test_overlaps_are_stored_sparsely() -> None:
    y = np.arange(1, 4001).reshape(40, 100)
    table = contingency_table(y, y[::-1])
    assert len(table.overlap_areas_px) == 4000
    assert table.ious().sum() == 4000


def test_the_empty_table() -> None:
    table = contingency_table(np.zeros((0, 3), int), np.zeros((0, 3), int))
    assert isinstance(table, ContingencyTable)
    assert not len(table.y_ids)
    assert not len(table.ious())


def test_the_inputs_stay_as_they_are() -> None:
    y = np.array([[3, 3, 0, 8]], np.uint16)
    kept = y.copy()
    contingency_table(y, y)
    np.testing.assert_array_equal(y, kept)


TAKE_A_PAIR = (
    "aggregated_jaccard_index",
    "aggregated_jaccard_index_plus",
    "binary_panoptic_quality",
    "dice",
    "dice2",
    "foreground_counts",
    "foreground_metrics",
    "hausdorff_distance",
    "instance_metrics",
    "iou",
    "matched_ids",
    "object_scores",
    "panoptic_quality",
    "precision_recall",
    "smoothed_overlap",
    "weighted_scores",
)


@settings(max_examples=40, deadline=None)
@given(pairs_of_label_maps())
def test_a_pair_gives_the_same_as_its_maps(maps: tuple[np.ndarray, np.ndarray]) -> None:
    pair = LabelPair(*maps)
    for name in TAKE_A_PAIR:
        metric = getattr(metrics, name)
        np.testing.assert_equal(metric(pair), metric(*maps), err_msg=name)
    for xy, labels in ((pair.y_xy, maps[0]), (pair.y_pred_xy, maps[1])):
        np.testing.assert_array_equal(xy, metrics.centroids_xy(labels).xy)


def test_an_evaluation_makes_one_pass_over_each_image() -> None:
    y = np.array([[1, 1, 0, 2], [1, 1, 0, 2]])
    classes = {1: 0, 2: 1}
    samples = [EvaluationSample(name, y, y[:, ::-1], classes, classes) for name in "ab"]
    with patch.object(module, "label_runs", wraps=module.label_runs) as counted:
        evaluate(samples, class_names=("a", "b"), radius_px=6)
    assert counted.call_count == len(samples)


def test_half_a_pair_and_a_pair_too_much_are_refused() -> None:
    y = np.ones((2, 2), int)
    with pytest.raises(ConfigurationError, match="one label map"):
        metrics.dice(y)
    with pytest.raises(ConfigurationError, match="a pair and a label map"):
        metrics.dice(LabelPair(y, y), y)
