"""Pixel metrics of the binary foreground of one image; foreground is every id > 0.

Empty images score instead of being skipped:

===============  ===========================  ==================
case             Dice, IoU, precision, recall  Hausdorff distance
===============  ===========================  ==================
both empty       1                             0
one empty        0                             image diagonal
===============  ===========================  ==================

A data set's value is the mean over its images; other ways to average, and the variants that single papers
use, are in :mod:`nucsam_monai.metrics.foreground_variants`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from nucsam_monai.metrics.hausdorff import hausdorff_distances
from nucsam_monai.metrics.label_maps import as_label_maps
from nucsam_monai.utils.errors import ConfigurationError


class PrecisionRecall(NamedTuple):
    """Pixel precision and recall of the foreground."""

    precision: float
    recall: float


class ForegroundMetrics(NamedTuple):
    """All foreground metrics of one image; ``hd`` and ``hd95`` in pixels."""

    dice: float
    iou: float
    precision: float
    recall: float
    hd: float
    hd95: float


class ForegroundCounts(NamedTuple):
    """Foreground areas of both maps and of their overlap, in pixels."""

    overlap: int
    y: int
    y_pred: int

    def _ratio(self, numerator: float, denominator: float) -> float:
        if not self.y or not self.y_pred:
            return float(self.y == self.y_pred)
        return numerator / denominator

    def plus(self, other: "ForegroundCounts") -> "ForegroundCounts":
        """Return the areas of both images together."""
        return ForegroundCounts(self.overlap + other.overlap, self.y + other.y, self.y_pred + other.y_pred)

    def dice(self) -> float:
        """Return the Dice coefficient, see :func:`dice`."""
        return self._ratio(2 * self.overlap, self.y + self.y_pred)

    def iou(self) -> float:
        """Return the intersection over union, see :func:`iou`."""
        return self._ratio(self.overlap, self.y + self.y_pred - self.overlap)

    def precision_recall(self) -> PrecisionRecall:
        """Return pixel precision and recall, see :func:`precision_recall`."""
        return PrecisionRecall(self._ratio(self.overlap, self.y_pred), self._ratio(self.overlap, self.y))


def dice(y: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the Dice coefficient ``2 |P and G| / (|P| + |G|)`` of the foregrounds.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool.
        y_pred: ``(H, W)`` prediction, likewise.

    Returns:
        Dice in [0, 1]; 1 if both foregrounds are empty, 0 if one is.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.

    Example:
        >>> dice([[1, 1, 0, 0]], [[0, 1, 1, 0]])
        0.5
    """
    return foreground_counts(y, y_pred).dice()


def iou(y: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the intersection over union ``|P and G| / |P or G|`` of the foregrounds.

    The "mIoU" of several papers is the mean of this value over images, not a mean over classes.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool.
        y_pred: ``(H, W)`` prediction, likewise.

    Returns:
        IoU in [0, 1]; 1 if both foregrounds are empty, 0 if one is.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.
    """
    return foreground_counts(y, y_pred).iou()


def precision_recall(y: ArrayLike, y_pred: ArrayLike) -> PrecisionRecall:
    """Return pixel precision ``|P and G| / |P|`` and recall ``|P and G| / |G|`` of the foregrounds.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool.
        y_pred: ``(H, W)`` prediction, likewise.

    Returns:
        Both in [0, 1]; both 1 if both foregrounds are empty, both 0 if one is.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.
    """
    return foreground_counts(y, y_pred).precision_recall()


def f1_mean_pr(precisions: ArrayLike, recalls: ArrayLike) -> float:
    """Return the F1 of a set of images from its mean precision and mean recall.

    The F1 of one image equals its Dice, so papers that print both mean this form: ``2 P R / (P + R)`` with
    P and R the means over the images.

    Args:
        precisions: ``(n,)`` precision of every image.
        recalls: ``(n,)`` recall of every image.

    Returns:
        F1 in [0, 1]; 0 if both means are 0.

    Raises:
        ConfigurationError: the lengths differ or there is no image.

    Source:
        UN-SAM, the F1 of its evaluation.
    """
    precision, recall = np.asarray(precisions, dtype=float), np.asarray(recalls, dtype=float)
    if precision.ndim != 1 or precision.shape != recall.shape or not precision.size:
        raise ConfigurationError(
            f"f1_mean_pr: expected one precision and one recall per image, found shapes "
            f"{precision.shape} and {recall.shape}."
        )
    total = precision.mean() + recall.mean()
    return float(2 * precision.mean() * recall.mean() / total) if total else 0.0


def foreground_metrics(y: ArrayLike, y_pred: ArrayLike) -> ForegroundMetrics:
    """Return Dice, IoU, precision, recall, HD and HD95 of one image.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool.
        y_pred: ``(H, W)`` prediction, likewise.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.
    """
    counts = foreground_counts(y, y_pred)
    hd, hd95 = hausdorff_distances(y, y_pred, (100.0, 95.0))
    return ForegroundMetrics(counts.dice(), counts.iou(), *counts.precision_recall(), hd, hd95)


def foreground_counts(y: ArrayLike, y_pred: ArrayLike) -> ForegroundCounts:
    """Return the areas that all overlap metrics of the foreground are computed from.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool.
        y_pred: ``(H, W)`` prediction, likewise.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.
    """
    truth, prediction = (labels > 0 for labels in as_label_maps(y, y_pred))
    overlap = np.count_nonzero(truth & prediction)
    return ForegroundCounts(int(overlap), int(np.count_nonzero(truth)), int(np.count_nonzero(prediction)))
