import numpy as np
from hypothesis import given, settings

from nucsam_monai.metrics import ContingencyTable, contingency_table
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
