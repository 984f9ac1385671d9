"""Compute once what several metrics need of two label maps of one image."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array

from nucsam_monai.metrics.assignment import maximum_weight_assignment
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.label_runs import LabelRuns, areas_px, centroids_xy_of, label_runs, moments, rank_ids

_TIE_WEIGHT = 1e-9


@dataclass(frozen=True)
class ContingencyTable:
    """Hold the areas of all instances of two label maps and of their overlaps.

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


class LabelPair:
    """Compare the ground truth and the prediction of one image; all metrics share its contingency table.

    Every metric of this package takes either two label maps or a pair. What several metrics need is counted
    when the first of them asks for it and kept with the pair, so the maps must not change afterwards.

    Args:
        y: ``(H, W)`` ground truth; integers >= 0 of any dtype, 0 = background, or a bool mask (one object). Ids
            may have gaps and any size.
        y_pred: ``(H, W)`` prediction in the same format.

    Attributes:
        y: the ground truth as an array, not copied; a bool mask becomes uint8.
        y_pred: the prediction in the same format.

    Raises:
        ConfigurationError: a map is not two-dimensional, is not of integers or bool, or the shapes differ.
            Negative ids are found when the pixels are first read.

    Example:
        >>> pair = LabelPair([[7, 7, 0]], [[0, 2, 2]])
        >>> pair.table.y_areas_px, pair.table.overlap_areas_px, pair.y_pred_xy
        (array([2]), array([1]), array([[1.5, 0. ]]))
    """

    def __init__(self, y: ArrayLike, y_pred: ArrayLike) -> None:
        self.y, self.y_pred = as_integer_map("y", y), as_integer_map("y_pred", y_pred)
        if self.y.shape != self.y_pred.shape:
            raise ConfigurationError(
                f"y has shape {self.y.shape}, y_pred has shape {self.y_pred.shape}. "
                "Resample the prediction to the size of the ground truth before measuring it."
            )

    @classmethod
    def of(cls, y: "Labels", y_pred: ArrayLike | None = None) -> "LabelPair":
        """Return the pair of two label maps, or the pair itself.

        Args:
            y: a pair, or the ground truth.
            y_pred: the prediction; left out after a pair.

        Raises:
            ConfigurationError: the maps do not make a pair, or the prediction is missing or one too many.
        """
        if isinstance(y, LabelPair) == (y_pred is not None):
            raise ConfigurationError(
                "expected two label maps, or one LabelPair on its own; "
                f"found {'a pair and a label map' if y_pred is not None else 'one label map'}."
            )
        return y if isinstance(y, LabelPair) else cls(y, y_pred)  # type: ignore[arg-type]

    @classmethod
    def of_table(cls, table: ContingencyTable) -> "LabelPair":
        """Return a pair that is known by its areas and overlaps alone, for metrics of instances.

        It has no pixels, so metrics of the foreground, centroids and masks see empty maps.
        """
        empty = np.zeros((0, 0), dtype=np.uint8)
        pair = cls(empty, empty)
        pair.__dict__["table"] = table  # where cached_property keeps it
        return pair

    @cached_property
    def table(self) -> ContingencyTable:
        """Areas and overlaps of all instances."""
        runs, y_ids, rows, y_pred_ids, columns = self._runs
        shared = np.flatnonzero((rows >= 0) & (columns >= 0))
        cells = rows.take(shared), columns.take(shared)
        # the conversion adds up the runs of equal cells; no (n, m) matrix is made
        overlaps = coo_array((runs.lengths.take(shared), cells), shape=(len(y_ids), len(y_pred_ids))).tocsr()
        overlaps.sort_indices()
        return ContingencyTable(
            y_ids=y_ids,
            y_pred_ids=y_pred_ids,
            y_areas_px=areas_px(runs, rows, len(y_ids)),
            y_pred_areas_px=areas_px(runs, columns, len(y_pred_ids)),
            overlap_rows=np.repeat(np.arange(len(y_ids)), np.diff(overlaps.indptr)),
            overlap_columns=overlaps.indices.astype(np.int64),
            overlap_areas_px=overlaps.data,
        )

    @cached_property
    def assignment(self) -> NDArray[np.int64]:
        """Overlapping pairs of the one-to-one assignment of maximum total IoU, see :func:`maximum_iou_assignment`."""
        return maximum_iou_assignment(self.table)

    @property
    def y_xy(self) -> NDArray[np.float64]:
        """Centres of mass ``(n, 2)`` of the instances of ``y`` as x, y, in the order of the table's rows."""
        return self._centroids[0]

    @property
    def y_pred_xy(self) -> NDArray[np.float64]:
        """Centres of mass ``(m, 2)`` of the instances of ``y_pred``, in the order of the table's columns."""
        return self._centroids[1]

    @cached_property
    def masks(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The ``(H, W)`` foregrounds of ``y`` and of ``y_pred``."""
        refuse_negative_ids("y", self.y)
        refuse_negative_ids("y_pred", self.y_pred)
        return self.y > 0, self.y_pred > 0

    @cached_property
    def _centroids(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        run_moments, table = moments(self._runs.runs), self.table
        return (
            centroids_xy_of(run_moments, self._runs.rows, table.y_areas_px),
            centroids_xy_of(run_moments, self._runs.columns, table.y_pred_areas_px),
        )

    @cached_property
    def _runs(self) -> "_RankedRuns":
        """The one pass over the pixels: runs of equal (y, y_pred) that lie inside an instance."""
        runs = label_runs(self.y, self.y_pred)
        y_values, y_pred_values = self.y.ravel().take(runs.starts), self.y_pred.ravel().take(runs.starts)
        refuse_negative_ids("y", y_values)
        refuse_negative_ids("y_pred", y_pred_values)
        # What is background in both maps, a third of the runs, adds to nothing.
        counted = np.flatnonzero((y_values != 0) | (y_pred_values != 0))
        runs = LabelRuns(runs.starts.take(counted), runs.lengths.take(counted), runs.width)
        return _RankedRuns(runs, *rank_ids(y_values.take(counted)), *rank_ids(y_pred_values.take(counted)))


Labels: TypeAlias = ArrayLike | LabelPair
"""What a metric takes first: the ground truth, to be followed by the prediction, or the pair of both."""


class _RankedRuns(NamedTuple):
    """Runs inside instances of either map, with the table's row and column that they belong to, -1 for background."""

    runs: LabelRuns
    y_ids: NDArray[Any]
    rows: NDArray[np.int64]
    y_pred_ids: NDArray[Any]
    columns: NDArray[np.int64]


def contingency_table(y: Labels, y_pred: ArrayLike | None = None) -> ContingencyTable:
    """Count the areas and overlaps of two label maps.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.
    """
    return LabelPair.of(y, y_pred).table


def maximum_iou_assignment(table: ContingencyTable) -> NDArray[np.int64]:
    """Pair overlapping instances one to one so that the sum of the IoUs is as large as possible.

    Where assignments tie (their IoU sums differ by less than 1e-9) the one that covers the larger total
    overlap is taken, so that AJI+ doesn't depend on the order of the ids.

    Args:
        table: areas and overlaps of the two label maps.

    Returns:
        Indices into the table's overlapping pairs, in ascending order. Every pair has IoU > 0; instances
        without a pair are unmatched.
    """
    overlaps = table.overlap_areas_px
    weights = table.ious() + _TIE_WEIGHT * (overlaps / max(overlaps.sum(), 1))
    return maximum_weight_assignment(table.overlap_rows, table.overlap_columns, weights)


def as_integer_map(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return one label map as a NumPy array, without looking for negative ids.

    Args:
        name: how error messages name the map.
        values: ``(H, W)`` integers, 0 = background, or a bool mask (one object).

    Raises:
        ConfigurationError: the map is not two-dimensional, or is not of integers or bool.
    """
    labels = np.asarray(values)
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise ConfigurationError(
            f"{name}: expected a (H, W) map of integer ids (0 = background) or a bool mask, found shape "
            f"{labels.shape} of {labels.dtype}. Remove channel axes and cast ids to an integer type."
        )
    return labels.view(np.uint8) if labels.dtype.kind == "b" else labels


def refuse_negative_ids(name: str, ids: NDArray[Any]) -> None:
    """Refuse a label map with an id below 0.

    Args:
        name: how error messages name the map.
        ids: the map, or every id in it.

    Raises:
        ConfigurationError: an id is negative.
    """
    if ids.dtype.kind == "i" and ids.size and ids.min() < 0:
        raise ConfigurationError(
            f"{name}: found the negative id {ids.min()}, expected ids >= 0. "
            "Set ignored or unknown pixels to 0 (background)."
        )
