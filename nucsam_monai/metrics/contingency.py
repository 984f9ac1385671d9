"""The one pass over the pixels that every instance metric is computed from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nucsam_monai.metrics.label_maps import as_label_maps

_LOOKUP_TABLE_MAX_ID = 1 << 22  # 4 MB of flags; larger ids are sorted instead


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

    The maps are read once as runs of equal (y, y_pred) pairs. Whatever needs sorting is sorted over the
    runs, of which a nuclei image has about twenty times fewer than pixels; no ``(n, m)`` matrix is made.

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
    truth, prediction = as_label_maps(y, y_pred)
    truth_runs, prediction_runs, lengths = _pair_runs(truth.ravel(), prediction.ravel())
    y_ids, rows = rank_ids(truth_runs)
    y_pred_ids, columns = rank_ids(prediction_runs)
    shared = (rows >= 0) & (columns >= 0)
    pairs, overlaps = _sum_by_key(rows[shared] * max(len(y_pred_ids), 1) + columns[shared], lengths[shared])
    overlap_rows, overlap_columns = np.divmod(pairs, max(len(y_pred_ids), 1))
    return ContingencyTable(
        y_ids=y_ids,
        y_pred_ids=y_pred_ids,
        y_areas_px=_sum_by_rank(rows, lengths, len(y_ids)),
        y_pred_areas_px=_sum_by_rank(columns, lengths, len(y_pred_ids)),
        overlap_rows=overlap_rows,
        overlap_columns=overlap_columns,
        overlap_areas_px=overlaps,
    )


def _pair_runs(
    truth: NDArray[Any], prediction: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Return the ids and the length of every run of pixels in which neither flat map changes."""
    if not truth.size:
        return truth, prediction, np.zeros(0, np.int64)
    changes = truth[1:] != truth[:-1]
    changes |= prediction[1:] != prediction[:-1]
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    lengths = np.diff(starts, append=truth.size)
    return truth[starts], prediction[starts], lengths


def rank_ids(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the non-zero ids in rising order and, for every value, its id's rank; -1 for background.

    Args:
        values: ``(k,)`` integers >= 0.
    """
    if values.size and values.max() <= _LOOKUP_TABLE_MAX_ID:
        present = np.zeros(int(values.max()) + 1, dtype=bool)
        present[values] = True
        present[0] = False
        ids = np.flatnonzero(present)
        ranks = np.full(len(present), -1, dtype=np.int64)
        ranks[ids] = np.arange(len(ids))
        return ids.astype(values.dtype), ranks[values]
    ids, ranks = np.unique(values, return_inverse=True)
    if ids.size and ids[0] == 0:
        return ids[1:], ranks - 1
    return ids, ranks


def _sum_by_key(
    keys: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct keys in rising order and the sum of the lengths of each."""
    if not keys.size:
        return keys, lengths
    order = np.argsort(keys)
    keys = keys[order]
    starts = np.concatenate(([0], np.flatnonzero(keys[1:] != keys[:-1]) + 1))
    return keys[starts], np.add.reduceat(lengths[order], starts)


def _sum_by_rank(ranks: NDArray[np.int64], lengths: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    # bincount adds in float64, which is exact up to 2**53 pixels
    return np.bincount(ranks + 1, weights=lengths, minlength=count + 1)[1:].astype(np.int64)
