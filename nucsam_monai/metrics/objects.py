"""Object scores by counting: average precision and F1 at IoU thresholds, and the ensemble Dice."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from nucsam_monai.metrics.contingency import ContingencyTable, contingency_table
from nucsam_monai.metrics.ratios import ratio
from nucsam_monai.utils.errors import ConfigurationError

COCO_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


class ObjectScores(NamedTuple):
    """Scores of one image or, after :meth:`plus`, of several; every array is ``(thresholds,)``.

    Attributes:
        thresholds: the IoU from which a pair matches.
        tp: matched pairs.
        fp: unmatched predictions.
        fn: unmatched ground truth.
    """

    thresholds: NDArray[np.float64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]

    @property
    def average_precision(self) -> NDArray[np.float64]:
        """``TP / (TP + FP + FN)``; NaN if there is neither ground truth nor prediction."""
        return ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def f1(self) -> NDArray[np.float64]:
        """``2 TP / (2 TP + FP + FN)``; NaN if there is neither ground truth nor prediction."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    def plus(self, other: "ObjectScores") -> "ObjectScores":
        """Return the scores of both sets of images together.

        Raises:
            ConfigurationError: the thresholds differ.
        """
        if not np.array_equal(self.thresholds, other.thresholds):
            raise ConfigurationError(
                f"cannot add counts at IoU {other.thresholds.tolist()} to counts at {self.thresholds.tolist()}."
            )
        return ObjectScores(self.thresholds, self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)


def object_scores(
    y: ArrayLike, y_pred: ArrayLike, thresholds: Sequence[float] = COCO_THRESHOLDS
) -> ObjectScores:
    """Count matches at IoU thresholds, for object F1 and average precision.

    A pair can match from ``IoU >= threshold`` (panoptic quality asks for more than its threshold). At each
    threshold as many pairs as possible are matched one to one; above 0.5 there is only one way to do that.
    "Average precision" of cell segmentation is ``TP / (TP + FP + FN)`` at one threshold, not an area under a
    curve: there are no scores.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background.
        y_pred: ``(H, W)`` prediction, likewise.
        thresholds: each 0 < threshold <= 1.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape, or a threshold is out of range.

    Source:
        Schmidt et al., Cell Detection with Star-convex Polygons, MICCAI 2018, section 3; Stringer et al.,
        Cellpose, Nature Methods 2021, Methods.

    Example:
        >>> object_scores([[1, 1, 0, 2]], [[5, 5, 5, 0]], [0.5, 0.75]).average_precision
        array([0.5, 0. ])
    """
    table, limits = contingency_table(y, y_pred), np.asarray(thresholds, dtype=np.float64)
    if limits.ndim != 1 or not ((limits > 0) & (limits <= 1)).all():
        raise ConfigurationError(f"thresholds: expected a list of 0 < IoU <= 1, found {thresholds}.")
    tp = np.array([_most_matches(table, limit) for limit in limits], dtype=np.int64)
    return ObjectScores(limits, tp, len(table.y_pred_ids) - tp, len(table.y_ids) - tp)


def dice2(y: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the ensemble Dice (Dice 2), which punishes nuclei that are split or merged.

    Over all pairs of a nucleus and a prediction that share a pixel: twice the sum of their overlaps by the sum
    of both their areas. An object that overlaps several others enters several times; one that overlaps nothing
    doesn't enter at all.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background.
        y_pred: ``(H, W)`` prediction, likewise.

    Returns:
        Dice 2 in [0, 1]; 0 if nothing overlaps, NaN if ``y`` has no instance.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.

    Source:
        Vu et al., Methods for Segmentation and Classification of Digital Microscopy Tissue Images, Frontiers in
        Bioengineering and Biotechnology 2019, in the form of the evaluation code of HoVer-Net.

    Example:
        >>> dice2([[1, 1, 1, 1]], [[5, 5, 6, 6]])
        0.6666666666666666
    """
    table = contingency_table(y, y_pred)
    if not len(table.y_ids):
        return math.nan
    if not table.overlap_areas_px.size:
        return 0.0
    areas = table.y_areas_px[table.overlap_rows] + table.y_pred_areas_px[table.overlap_columns]
    return float(2 * table.overlap_areas_px.sum() / areas.sum())


def _most_matches(table: ContingencyTable, threshold: float) -> int:
    """Return how many pairs of at least this IoU can be matched one to one."""
    possible = table.ious() >= threshold
    if threshold > 0.5 or not possible.any():
        return int(np.count_nonzero(possible))
    cells = table.overlap_rows[possible], table.overlap_columns[possible]
    graph = coo_array(
        (np.ones(len(cells[0]), bool), cells), shape=(len(table.y_ids), len(table.y_pred_ids))
    ).tocsr()
    return int(np.count_nonzero(maximum_bipartite_matching(graph) >= 0))
