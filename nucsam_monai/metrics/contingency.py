"""The one pass over the pixels that every instance metric is computed from."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array

from nucsam_monai.metrics.label_maps import as_integer_maps, refuse_negative_ids
from nucsam_monai.utils.label_runs import LabelRuns, areas_px, centroids_xy_of, label_runs, moments, rank_ids


@dataclass(frozen=True)
class ContingencyTable:
    """Areas of all instances of two label maps and of their overlaps.

    Rows are the ``n`` instances of ``y`` and columns the ``m`` instances of ``y_pred``, both in rising
    order of their ids; background is neither. Only the ``k`` pairs that share a pixel are stored, in
    row-major order.

    Attributes:
        y_ids: ``(n,)`` ids in ``y``, of the map's dtype.
        y_pred_ids: ``(m,)`` ids in ``y_pred``, of the map's dtype.
        y_areas_px: ``(n,)`` int64 areas, in square pixels.
        y_pred_areas_px: ``(m,)`` int64 areas.
        overlap_rows: ``(k,)`` int64 row of each overlapping pair.
        overlap_columns: ``(k,)`` int64 column of each overlapping pair.
        overlap_areas_px: ``(k,)`` int64 shared area of each overlapping pair, > 0.
    """

    y_ids: NDArray[Any]
    y_pred_ids: NDArray[Any]
    y_areas_px: NDArray[np.int64]
    y_pred_areas_px: NDArray[np.int64]
    overlap_rows: NDArray[np.int64]
    overlap_columns: NDArray[np.int64]
    overlap_areas_px: NDArray[np.int64]

    def union_areas_px(self) -> NDArray[np.int64]:
        """Return the ``(k,)`` area of the union of each overlapping pair."""
        rows, columns = self.overlap_rows, self.overlap_columns
        return self.y_areas_px[rows] + self.y_pred_areas_px[columns] - self.overlap_areas_px

    def ious(self) -> NDArray[np.float64]:
        """Return the ``(k,)`` intersection over union of each overlapping pair."""
        return self.overlap_areas_px / self.union_areas_px()


def contingency_table(y: ArrayLike, y_pred: ArrayLike) -> ContingencyTable:
    """Count the areas and overlaps of two label maps.

    The maps are read once as runs of equal (y, y_pred) pairs, and everything is added up over the runs; no
    ``(n, m)`` matrix is made.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 of any dtype, 0 = background. Ids may have gaps and any
            size.
        y_pred: ``(H, W)`` prediction, likewise.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.

    Example:
        >>> table = contingency_table([[7, 7, 0]], [[0, 2, 2]])
        >>> table.y_areas_px, table.overlap_areas_px
        (array([2]), array([1]))
    """
    return _table(_ranked_runs(y, y_pred))


class TableAndCentroids(NamedTuple):
    """The table of two label maps, and ``(n, 2)`` and ``(m, 2)`` centroids of its rows and columns as x, y."""

    table: ContingencyTable
    y_xy: NDArray[np.float64]
    y_pred_xy: NDArray[np.float64]


def table_and_centroids(y: ArrayLike, y_pred: ArrayLike) -> TableAndCentroids:
    """Return what all instance and detection metrics need, from one pass over the pixels.

    Args:
        y: ``(H, W)`` ground truth, see :func:`contingency_table`.
        y_pred: ``(H, W)`` prediction, likewise.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.

    Example:
        >>> table_and_centroids([[7, 7, 0]], [[0, 2, 2]]).y_pred_xy
        array([[1.5, 0. ]])
    """
    ranked = _ranked_runs(y, y_pred)
    table, run_moments = _table(ranked), moments(ranked.runs)
    return TableAndCentroids(
        table,
        centroids_xy_of(run_moments, ranked.rows, table.y_areas_px),
        centroids_xy_of(run_moments, ranked.columns, table.y_pred_areas_px),
    )


class _RankedRuns(NamedTuple):
    """Runs inside instances of either map, with the table's row and column that they belong to, -1 for background."""

    runs: LabelRuns
    y_ids: NDArray[Any]
    rows: NDArray[np.int64]
    y_pred_ids: NDArray[Any]
    columns: NDArray[np.int64]


def _ranked_runs(y: ArrayLike, y_pred: ArrayLike) -> _RankedRuns:
    truth, prediction = as_integer_maps(y, y_pred)
    runs = label_runs(truth, prediction)
    truth_values, prediction_values = truth.ravel().take(runs.starts), prediction.ravel().take(runs.starts)
    refuse_negative_ids("y", truth_values)
    refuse_negative_ids("y_pred", prediction_values)
    # What is background in both maps, a third of the runs, adds to nothing.
    counted = np.flatnonzero((truth_values != 0) | (prediction_values != 0))
    runs = LabelRuns(runs.starts.take(counted), runs.lengths.take(counted), runs.width)
    return _RankedRuns(
        runs, *rank_ids(truth_values.take(counted)), *rank_ids(prediction_values.take(counted))
    )


def _table(ranked: _RankedRuns) -> ContingencyTable:
    shape = len(ranked.y_ids), len(ranked.y_pred_ids)
    shared = np.flatnonzero((ranked.rows >= 0) & (ranked.columns >= 0))
    cells = ranked.rows.take(shared), ranked.columns.take(shared)
    overlaps = coo_array(
        (ranked.runs.lengths.take(shared), cells), shape=shape
    ).tocsr()  # adds up equal cells
    overlaps.sort_indices()
    return ContingencyTable(
        y_ids=ranked.y_ids,
        y_pred_ids=ranked.y_pred_ids,
        y_areas_px=areas_px(ranked.runs, ranked.rows, shape[0]),
        y_pred_areas_px=areas_px(ranked.runs, ranked.columns, shape[1]),
        overlap_rows=np.repeat(np.arange(shape[0]), np.diff(overlaps.indptr)),
        overlap_columns=overlaps.indices.astype(np.int64),
        overlap_areas_px=overlaps.data,
    )
