"""Instance metrics of one image: AJI, AJI+, and detection, segmentation and panoptic quality.

All of them read the same :class:`~nucsam_monai.metrics.contingency.ContingencyTable`. Ids may have gaps and
any size, and an image needs no background pixel. Empty images:

========================  ==========================  ===========================
case                      AJI, AJI+, DQ, SQ, PQ       TP, FP, FN
========================  ==========================  ===========================
``y`` has no instance     NaN: skipped in means       0, number predicted, 0
``y_pred`` has none       0                           0, 0, number in ``y``
========================  ==========================  ===========================

A data set's value is the mean of its images' values that are not NaN.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nucsam_monai.metrics.assignment import maximum_iou_assignment
from nucsam_monai.metrics.contingency import ContingencyTable, contingency_table
from nucsam_monai.utils.errors import ConfigurationError

_SQ_EPSILON = 1e-6  # as in the evaluation code of HoVer-Net; a perfect SQ is n / (n + 1e-6)


class PanopticQuality(NamedTuple):
    """Detection quality, segmentation quality, their product, and the counts behind them."""

    dq: float
    sq: float
    pq: float
    tp: int
    fp: int
    fn: int


class InstanceMetrics(NamedTuple):
    """All instance metrics of one image."""

    aji: float
    aji_plus: float
    dq: float
    sq: float
    pq: float
    tp: int
    fp: int
    fn: int


def aggregated_jaccard_index(y: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the aggregated Jaccard index (AJI) of a prediction.

    Every ground-truth nucleus takes the prediction with the highest IoU as its partner, the one with the
    lowest id where several tie. Intersections and unions of all partners are summed; nuclei without an
    overlap and predictions that are nobody's partner add their area to the union. A prediction may be the
    partner of several nuclei, as in the widely used evaluation code.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background.
        y_pred: ``(H, W)`` prediction, likewise.

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
    return aji_from_table(contingency_table(y, y_pred))


def aggregated_jaccard_index_plus(y: ArrayLike, y_pred: ArrayLike) -> float:
    """Return AJI+: AJI with partners from the one-to-one assignment of maximum total IoU.

    Only pairs with IoU > 0 are partners; every unpaired nucleus and prediction adds its area to the union. Of
    assignments with the same total IoU the one with the larger total intersection counts.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background.
        y_pred: ``(H, W)`` prediction, likewise.

    Returns:
        AJI+ in [0, 1]; NaN if ``y`` has no instance.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.

    Source:
        Graham et al., HoVer-Net, Medical Image Analysis 2019, evaluation code.
    """
    return aji_plus_from_table(contingency_table(y, y_pred))


def panoptic_quality(y: ArrayLike, y_pred: ArrayLike, match_iou: float = 0.5) -> PanopticQuality:
    """Return detection quality (DQ), segmentation quality (SQ) and panoptic quality (PQ = DQ * SQ).

    With ``match_iou >= 0.5`` every pair with IoU > ``match_iou`` matches; such pairs are unique because
    instances of one map don't overlap. With a lower threshold the pairs come from the one-to-one assignment
    of maximum total IoU, and those with IoU <= ``match_iou`` are then dropped::

        DQ = TP / (TP + FP/2 + FN/2)        SQ = (sum of IoU over TP) / (TP + 1e-6)

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background.
        y_pred: ``(H, W)`` prediction, likewise.
        match_iou: a pair matches above this IoU; 0 <= match_iou < 1.

    Returns:
        The three qualities, NaN if ``y`` has no instance, and the counts of matches, of unmatched
        predictions and of unmatched ground truth.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape, or ``match_iou`` is outside [0, 1).

    Source:
        Kirillov et al., Panoptic Segmentation, CVPR 2019, Eq. 1 and 2.
    """
    return panoptic_quality_from_table(contingency_table(y, y_pred), match_iou)


def instance_metrics(y: ArrayLike, y_pred: ArrayLike, match_iou: float = 0.5) -> InstanceMetrics:
    """Return AJI, AJI+, DQ, SQ, PQ and the matched counts from one pass over the pixels.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background.
        y_pred: ``(H, W)`` prediction, likewise.
        match_iou: IoU above which a pair counts as detected in DQ, SQ and PQ; 0 <= match_iou < 1.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape, or ``match_iou`` is outside [0, 1).

    Example:
        >>> instance_metrics([[1, 1, 0]], [[9, 9, 0]]).aji
        1.0
    """
    return instance_metrics_from_table(contingency_table(y, y_pred), match_iou)


def instance_metrics_from_table(table: ContingencyTable, match_iou: float = 0.5) -> InstanceMetrics:
    """Return all instance metrics of a counted image, see :func:`instance_metrics`."""
    quality = panoptic_quality_from_table(table, match_iou)
    return InstanceMetrics(aji_from_table(table), aji_plus_from_table(table), *quality)


def aji_from_table(table: ContingencyTable) -> float:
    """Return the AJI of a counted image, see :func:`aggregated_jaccard_index`."""
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


def aji_plus_from_table(table: ContingencyTable) -> float:
    """Return the AJI+ of a counted image, see :func:`aggregated_jaccard_index_plus`."""
    if not len(table.y_ids):
        return math.nan
    intersection = table.overlap_areas_px[maximum_iou_assignment(table)].sum()
    # in a one-to-one assignment every instance enters the union once, paired or not
    union = table.y_areas_px.sum() + table.y_pred_areas_px.sum() - intersection
    return float(intersection / union)


def panoptic_quality_from_table(table: ContingencyTable, match_iou: float = 0.5) -> PanopticQuality:
    """Return the panoptic quality of a counted image, see :func:`panoptic_quality`."""
    matched = _matched_overlaps(table, match_iou)
    tp = len(matched)
    fp, fn = len(table.y_pred_ids) - tp, len(table.y_ids) - tp
    dq, sq, pq = qualities(*(np.array([value]) for value in (tp, fp, fn, table.ious()[matched].sum())))
    return PanopticQuality(float(dq[0]), float(sq[0]), float(pq[0]), tp, fp, fn)


def matched_ids(y: ArrayLike, y_pred: ArrayLike, match_iou: float = 0.5) -> tuple[set[int], set[int]]:
    """Return the ids on both sides of the pairs that :func:`panoptic_quality` counts as matches.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background.
        y_pred: ``(H, W)`` prediction, likewise.
        match_iou: a pair matches above this IoU; 0 <= match_iou < 1.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape, or ``match_iou`` is outside [0, 1).

    Example:
        >>> matched_ids([[1, 1, 0, 2]], [[5, 5, 6, 0]])
        ({1}, {5})
    """
    table = contingency_table(y, y_pred)
    matched = _matched_overlaps(table, match_iou)
    return (
        set(table.y_ids[table.overlap_rows[matched]].tolist()),
        set(table.y_pred_ids[table.overlap_columns[matched]].tolist()),
    )


def _matched_overlaps(table: ContingencyTable, match_iou: float) -> NDArray[np.intp]:
    """Return which overlaps are matches; above an IoU of 0.5 no instance can be in two of them."""
    if not 0 <= match_iou < 1:
        raise ConfigurationError(
            f"match_iou: expected 0 <= match_iou < 1, found {match_iou}. The usual value is 0.5."
        )
    matches = table.ious() > match_iou
    if match_iou < 0.5:
        partners = maximum_iou_assignment(table)
        return partners[matches[partners]]
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
