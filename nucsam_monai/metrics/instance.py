"""Compute instance metrics of one image: AJI, AJI+, panoptic quality, object F1, average precision and Dice 2.

All of them use the contingency table of a :class:`~nucsam_monai.metrics.LabelPair`. Ids may have gaps, and an image
needs no background pixel. Empty images:

| case | AJI, AJI+, DQ, SQ, PQ | TP, FP, FN |
|---|---|---|
| ``y`` has no nucleus | NaN, skipped in means | 0, number predicted, 0 |
| ``y_pred`` has no nucleus | 0 | 0, 0, number in ``y`` |

The value of a dataset is the mean over its images, without NaN.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from nucsam_monai.metrics.pair import ContingencyTable, LabelPair, Labels
from nucsam_monai.metrics.statistics import ratio
from nucsam_monai.utils.errors import ConfigurationError

COCO_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))

_SQ_EPSILON = 1e-6  # as in the evaluation code of HoVer-Net; a perfect SQ is n / (n + 1e-6)


class PanopticQuality(NamedTuple):
    """Hold detection quality, segmentation quality, their product, and the counts behind them."""

    dq: float
    sq: float
    pq: float
    tp: int
    fp: int
    fn: int


class InstanceMetrics(NamedTuple):
    """Hold all instance metrics of one image."""

    aji: float
    aji_plus: float
    dq: float
    sq: float
    pq: float
    tp: int
    fp: int
    fn: int


class ObjectScores(NamedTuple):
    """Hold the object scores of one image or, after :meth:`plus`, of several; every array is ``(thresholds,)``.

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


def aggregated_jaccard_index(y: Labels, y_pred: ArrayLike | None = None) -> float:
    """Return the aggregated Jaccard index (AJI) of a prediction.

    Every ground-truth nucleus takes the prediction with the highest IoU as its partner, the one with the
    lowest id where several tie. Intersections and unions of all partners are summed; nuclei without an
    overlap and unmatched predictions add their area to the union. A prediction may be the
    partner of several nuclei, as in the widely used evaluation code.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.

    Returns:
        AJI in [0, 1]; NaN if ``y`` has no instance.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.

    Source:
        Kumar et al., A Dataset and a Technique for Generalized Nuclear Segmentation for Computational
        Pathology, IEEE TMI 2017, in the form of the evaluation code of HoVer-Net.

    Example:
        >>> aggregated_jaccard_index([[1, 1, 0, 2]], [[5, 5, 5, 0]])
        0.5
    """
    table = LabelPair.of(y, y_pred).table
    if not len(table.y_ids):
        return math.nan
    rows, columns = table.overlap_rows, table.overlap_columns
    by_row_best_first = np.lexsort((columns, -table.ious(), rows))
    _, first = np.unique(rows[by_row_best_first], return_index=True)
    partners = by_row_best_first[first]
    without_overlap = np.ones(len(table.y_ids), dtype=bool)
    without_overlap[rows] = False
    unused = np.ones(len(table.y_pred_ids), dtype=bool)
    unused[columns[partners]] = False
    union = table.union_areas_px()[partners].sum()
    union += table.y_areas_px[without_overlap].sum() + table.y_pred_areas_px[unused].sum()
    return float(table.overlap_areas_px[partners].sum() / union)


def aggregated_jaccard_index_plus(y: Labels, y_pred: ArrayLike | None = None) -> float:
    """Return AJI+: AJI with partners from the one-to-one assignment of maximum total IoU.

    Only pairs with IoU > 0 are partners; every unpaired nucleus and prediction adds its area to the union. Of
    assignments with the same total IoU the one with the larger total intersection counts.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.

    Returns:
        AJI+ in [0, 1]; NaN if ``y`` has no instance.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.

    Source:
        Graham et al., HoVer-Net, Medical Image Analysis 2019, evaluation code.
    """
    pair = LabelPair.of(y, y_pred)
    table = pair.table
    if not len(table.y_ids):
        return math.nan
    intersection = table.overlap_areas_px[pair.assignment].sum()
    # in a one-to-one assignment every instance enters the union once, paired or not
    union = table.y_areas_px.sum() + table.y_pred_areas_px.sum() - intersection
    return float(intersection / union)


def panoptic_quality(y: Labels, y_pred: ArrayLike | None = None, match_iou: float = 0.5) -> PanopticQuality:
    """Return detection quality (DQ), segmentation quality (SQ) and panoptic quality (PQ = DQ * SQ).

    With ``match_iou >= 0.5`` every pair with IoU > ``match_iou`` matches; such pairs are unique because
    instances of one map don't overlap. With a lower threshold the pairs come from the one-to-one assignment
    of maximum total IoU, and those with IoU <= ``match_iou`` are then dropped::

        DQ = TP / (TP + FP/2 + FN/2)        SQ = (sum of IoU over TP) / (TP + 1e-6)

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.
        match_iou: a pair matches above this IoU; 0 <= match_iou < 1.

    Returns:
        The three qualities, NaN if ``y`` has no instance, and the counts of matches, of unmatched
        predictions and of unmatched ground truth.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape, or ``match_iou`` is outside [0, 1).

    Source:
        Kirillov et al., Panoptic Segmentation, CVPR 2019, Eq. 1 and 2.
    """
    pair = LabelPair.of(y, y_pred)
    table, matched = pair.table, _matched_overlaps(pair, match_iou)
    tp = len(matched)
    fp, fn = len(table.y_pred_ids) - tp, len(table.y_ids) - tp
    dq, sq, pq = qualities(*(np.array([value]) for value in (tp, fp, fn, table.ious()[matched].sum())))
    return PanopticQuality(float(dq[0]), float(sq[0]), float(pq[0]), tp, fp, fn)


def instance_metrics(y: Labels, y_pred: ArrayLike | None = None, match_iou: float = 0.5) -> InstanceMetrics:
    """Return AJI, AJI+, DQ, SQ, PQ and the matched counts from one pass over the pixels.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.
        match_iou: IoU above which a pair counts as detected in DQ, SQ and PQ; 0 <= match_iou < 1.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape, or ``match_iou`` is outside [0, 1).

    Example:
        >>> instance_metrics([[1, 1, 0]], [[9, 9, 0]]).aji
        1.0
    """
    pair = LabelPair.of(y, y_pred)
    quality = panoptic_quality(pair, match_iou=match_iou)
    return InstanceMetrics(aggregated_jaccard_index(pair), aggregated_jaccard_index_plus(pair), *quality)


def matched_ids(
    y: Labels, y_pred: ArrayLike | None = None, match_iou: float = 0.5
) -> tuple[set[int], set[int]]:
    """Return the ids on both sides of the pairs that :func:`panoptic_quality` counts as matches.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.
        match_iou: a pair matches above this IoU; 0 <= match_iou < 1.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape, or ``match_iou`` is outside [0, 1).

    Example:
        >>> matched_ids([[1, 1, 0, 2]], [[5, 5, 6, 0]])
        ({1}, {5})
    """
    pair = LabelPair.of(y, y_pred)
    table, matched = pair.table, _matched_overlaps(pair, match_iou)
    return (
        set(table.y_ids[table.overlap_rows[matched]].tolist()),
        set(table.y_pred_ids[table.overlap_columns[matched]].tolist()),
    )


def _matched_overlaps(pair: LabelPair, match_iou: float) -> NDArray[np.intp]:
    """Return which overlaps are matches; above an IoU of 0.5 no instance can be in two of them."""
    if not 0 <= match_iou < 1:
        raise ConfigurationError(
            f"match_iou: expected 0 <= match_iou < 1, found {match_iou}. The usual value is 0.5."
        )
    matches = pair.table.ious() > match_iou
    if match_iou < 0.5:
        return pair.assignment[matches[pair.assignment]]
    return np.flatnonzero(matches)


def qualities(
    tp: NDArray[np.int64], fp: NDArray[np.int64], fn: NDArray[np.int64], iou_sum: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return DQ, SQ and PQ of counts, NaN where the ground truth has no instance (``tp + fn == 0``).

    Args:
        tp: ``(k,)`` matches.
        fp: ``(k,)`` unmatched predictions.
        fn: ``(k,)`` unmatched ground truth.
        iou_sum: ``(k,)`` sum of the IoUs of the matches.
    """
    present = tp + fn > 0
    dq = np.where(present, tp / np.where(present, tp + 0.5 * fp + 0.5 * fn, 1), np.nan)
    sq = np.where(present, iou_sum / (tp + _SQ_EPSILON), np.nan)
    return dq, sq, dq * sq


def object_scores(
    y: Labels, y_pred: ArrayLike | None = None, thresholds: Sequence[float] = COCO_THRESHOLDS
) -> ObjectScores:
    """Count matches at IoU thresholds, for object F1 and average precision.

    A pair can match from ``IoU >= threshold`` (panoptic quality asks for more than its threshold). At each
    threshold as many pairs as possible are matched one to one; above 0.5 there is only one way to do that.
    "Average precision" of cell segmentation is ``TP / (TP + FP + FN)`` at one threshold, not an area under a
    curve: there are no scores.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.
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
    table, limits = LabelPair.of(y, y_pred).table, np.asarray(thresholds, dtype=np.float64)
    if limits.ndim != 1 or not ((limits > 0) & (limits <= 1)).all():
        raise ConfigurationError(f"thresholds: expected a list of 0 < IoU <= 1, found {thresholds}.")
    tp = np.array([_most_matches(table, limit) for limit in limits], dtype=np.int64)
    return ObjectScores(limits, tp, len(table.y_pred_ids) - tp, len(table.y_ids) - tp)


def dice2(y: Labels, y_pred: ArrayLike | None = None) -> float:
    """Return the ensemble Dice (Dice 2), which punishes nuclei that are split or merged.

    Over all pairs of a nucleus and a prediction that share a pixel: twice the sum of their overlaps by the sum
    of both their areas. An object that overlaps several others enters several times; one that overlaps nothing
    doesn't enter at all.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.

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
    table = LabelPair.of(y, y_pred).table
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


def mask_ious(y: Labels, y_pred: ArrayLike | None = None) -> NDArray[np.float64]:
    """Return the IoU of each prompted mask with the nucleus that was meant; two empty masks agree.

    Args:
        y: ``(n, H, W)`` true masks, true or not 0 inside.
        y_pred: ``(n, H, W)`` predicted masks in the same order.

    Raises:
        ConfigurationError: the shapes differ or are not stacks of masks.

    Example:
        >>> mask_ious([[[1, 1, 0]]], [[[0, 1, 1]]])
        array([0.33333333])
    """
    true, found = np.asarray(y) != 0, np.asarray(y_pred) != 0
    if true.ndim != 3 or true.shape != found.shape:
        raise ConfigurationError(
            f"masks: expected two stacks of one shape (n, H, W), found {true.shape} and {found.shape}."
        )
    shared = np.count_nonzero(true & found, axis=(1, 2))
    either = np.count_nonzero(true | found, axis=(1, 2))
    return np.where(either > 0, shared / np.maximum(either, 1), 1.0)
