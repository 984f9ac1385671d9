"""Compute pixel metrics of the binary foreground of one image; foreground is every id > 0.

Empty images have a value and are not skipped:

| case | Dice, IoU, precision, recall | Hausdorff distance |
|---|---|---|
| both maps empty | 1 | 0 |
| one map empty | 0 | image diagonal |

The value of a dataset is the mean over its images; :func:`average_foreground` offers other averages. The variants
that single papers use (:func:`weighted_scores`, :func:`smoothed_overlap`, :func:`threshold_mean`) must not be
compared with the plain metrics.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from nucsam_monai.metrics.pair import LabelPair, Labels
from nucsam_monai.metrics.statistics import nan_mean
from nucsam_monai.utils.errors import ConfigurationError

Average = Literal["image", "dataset"]
Empty = Literal["score", "skip"]

FIVE_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


class PrecisionRecall(NamedTuple):
    """Hold pixel precision and recall of the foreground."""

    precision: float
    recall: float


class ForegroundMetrics(NamedTuple):
    """Hold all foreground metrics of one image; ``hd`` and ``hd95`` in pixels."""

    dice: float
    iou: float
    precision: float
    recall: float
    hd: float
    hd95: float


class ForegroundCounts(NamedTuple):
    """Hold the foreground areas of both maps and of their overlap, in pixels."""

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


class WeightedScores(NamedTuple):
    """Hold F1 and IoU of background and foreground, weighted by their area in the ground truth."""

    weighted_f1: float
    weighted_iou: float


class OverlapScores(NamedTuple):
    """Hold Dice and IoU of the foreground."""

    dice: float
    iou: float


class ForegroundMeans(NamedTuple):
    """Hold the foreground metrics of a dataset; NaN if every image was skipped."""

    dice: float
    iou: float
    precision: float
    recall: float
    f1_mean_pr: float
    images: int
    skipped_images: int


def foreground_metrics(y: Labels, y_pred: ArrayLike | None = None) -> ForegroundMetrics:
    """Return Dice, IoU, precision, recall, HD and HD95 of one image.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.
    """
    pair = LabelPair.of(y, y_pred)
    counts = foreground_counts(pair)
    hd, hd95 = hausdorff_distances(pair, (100.0, 95.0))
    return ForegroundMetrics(counts.dice(), counts.iou(), *counts.precision_recall(), hd, hd95)


def foreground_counts(y: Labels, y_pred: ArrayLike | None = None) -> ForegroundCounts:
    """Return the areas that all overlap metrics of the foreground are computed from.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.
    """
    truth, prediction = LabelPair.of(y, y_pred).masks
    overlap = np.count_nonzero(truth & prediction)
    return ForegroundCounts(int(overlap), int(np.count_nonzero(truth)), int(np.count_nonzero(prediction)))


def dice(y: Labels, y_pred: ArrayLike | None = None) -> float:
    """Return the Dice coefficient ``2 |P and G| / (|P| + |G|)`` of the foregrounds.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.

    Returns:
        Dice in [0, 1]; 1 if both foregrounds are empty, 0 if one is.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.

    Example:
        >>> dice([[1, 1, 0, 0]], [[0, 1, 1, 0]])
        0.5
    """
    return foreground_counts(y, y_pred).dice()


def iou(y: Labels, y_pred: ArrayLike | None = None) -> float:
    """Return the intersection over union ``|P and G| / |P or G|`` of the foregrounds.

    The "mIoU" of several papers is the mean of this value over images, not a mean over classes.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.

    Returns:
        IoU in [0, 1]; 1 if both foregrounds are empty, 0 if one is.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.
    """
    return foreground_counts(y, y_pred).iou()


def precision_recall(y: Labels, y_pred: ArrayLike | None = None) -> PrecisionRecall:
    """Return pixel precision ``|P and G| / |P|`` and recall ``|P and G| / |G|`` of the foregrounds.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.

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


def hausdorff_distance(y: Labels, y_pred: ArrayLike | None = None, percentile: float | None = None) -> float:
    """Return the Hausdorff distance between the foreground boundaries, in pixels.

    Foreground is every id > 0. Its boundary is what a 4-neighbour erosion removes; outside the image counts
    as background, so foreground pixels on the image border are boundary. The distance is the larger of the
    two directed ones; a directed distance is the maximum, or the given percentile, of the Euclidean
    distances from every boundary pixel of one mask to the nearest boundary pixel of the other. (Other tools
    take the percentile of both directions together, which is smaller.)

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.
        percentile: 0 < percentile <= 100, linearly interpolated; None is the maximum. 95 gives HD95.

    Returns:
        The distance in pixels. Both foregrounds empty: 0. One empty: the image diagonal,
        ``sqrt(H**2 + W**2)``.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape, or the percentile is out of range.

    Example:
        >>> hausdorff_distance([[1, 0, 0, 0]], [[0, 0, 0, 1]])
        3.0
    """
    return hausdorff_distances(LabelPair.of(y, y_pred), [100.0 if percentile is None else percentile])[0]


def hausdorff_distances(pair: LabelPair, percentiles: Sequence[float]) -> tuple[float, ...]:
    """Return one Hausdorff distance per percentile, all from one search for nearest boundary pixels.

    Args:
        pair: the two label maps.
        percentiles: each 0 < percentile <= 100; 100 is the maximum, the plain Hausdorff distance.

    Returns:
        The distances in pixels, see :func:`hausdorff_distance`.

    Raises:
        ConfigurationError: a percentile is out of range, or an id is negative.
    """
    for percentile in percentiles:
        if not 0 < percentile <= 100:
            raise ConfigurationError(f"percentile: expected 0 < percentile <= 100, found {percentile}.")
    truth, prediction = pair.masks
    empty = (not truth.any(), not prediction.any())
    if any(empty):
        distance = 0.0 if all(empty) else math.hypot(*truth.shape)
        return (distance,) * len(percentiles)
    truth_boundary, prediction_boundary = _boundary(truth), _boundary(prediction)
    directed = (
        _distances_to(truth_boundary, prediction_boundary),
        _distances_to(prediction_boundary, truth_boundary),
    )
    return tuple(float(max(np.percentile(d, percentile) for d in directed)) for percentile in percentiles)


def _boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of the mask with a 4-neighbour outside the mask or outside the image."""
    boundary = mask.copy()
    boundary[1:-1, 1:-1] &= ~(mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:])
    return boundary


def _distances_to(target: NDArray[np.bool_], source: NDArray[np.bool_]) -> NDArray[Any]:
    """Return, for every source pixel, the distance in pixels to the nearest target pixel."""
    distances = np.zeros(np.count_nonzero(source))
    apart = source & ~target
    if apart.any():
        # pixels that both boundaries share have distance 0 and need no search; their order is of no interest
        distances[: np.count_nonzero(apart)], _ = KDTree(np.argwhere(target)).query(np.argwhere(apart))
    return distances


def weighted_scores(y: Labels, y_pred: ArrayLike | None = None) -> WeightedScores:
    """Return F1 and IoU averaged over background and foreground with their frequency in ``y`` as weight.

    The background dominates, so the values lie far above those of the foreground alone.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.

    Returns:
        Both in [0, 1]; NaN for an image without pixels.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.

    Source:
        SAM Guided Task-Specific Enhanced Nuclei Segmentation in Digital Pathology, evaluation of its tables.

    Example:
        >>> weighted_scores([[1, 0, 0, 0]], [[0, 0, 0, 0]])
        WeightedScores(weighted_f1=0.6428571428571428, weighted_iou=0.5625)
    """
    pair = LabelPair.of(y, y_pred)
    counts, pixels = foreground_counts(pair), pair.y.size
    if not pixels:
        return WeightedScores(math.nan, math.nan)
    union = counts.y + counts.y_pred - counts.overlap
    background = ForegroundCounts(pixels - union, pixels - counts.y, pixels - counts.y_pred)
    # a class that neither map has would count as perfect, but its weight is 0
    parts = [(part.y / pixels, part) for part in (background, counts)]
    return WeightedScores(
        weighted_f1=sum(weight * part.dice() for weight, part in parts),
        weighted_iou=sum(weight * part.iou() for weight, part in parts),
    )


def smoothed_overlap(y: Labels, y_pred: ArrayLike | None = None, smooth: float = 1.0) -> OverlapScores:
    """Return Dice and IoU with a constant added to numerator and denominator.

    Only small foregrounds notice: above ten thousand pixels the difference is below 1e-4. Two empty maps
    give 1, and a false positive or a miss of a whole image a little more than 0.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.
        smooth: the constant, > 0, in pixels.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape, or ``smooth`` is not positive.

    Source:
        UN-SAM, evaluation; the constant is 1.

    Example:
        >>> smoothed_overlap([[1, 1, 0, 0]], [[0, 1, 1, 0]])
        OverlapScores(dice=0.6, iou=0.5)
    """
    if not 0 < smooth < math.inf:
        raise ConfigurationError(f"smooth: expected a positive number of pixels, found {smooth}.")
    counts = foreground_counts(y, y_pred)
    areas = counts.y + counts.y_pred
    return OverlapScores(
        dice=(2 * counts.overlap + smooth) / (areas + smooth),
        iou=(counts.overlap + smooth) / (areas - counts.overlap + smooth),
    )


def threshold_mean(
    y: ArrayLike, probability: ArrayLike, thresholds: Sequence[float] = FIVE_THRESHOLDS
) -> OverlapScores:
    """Return the means of Dice and IoU over several thresholds of a probability map.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool.
        probability: ``(H, W)`` foreground probability in [0, 1]; foreground is what exceeds the threshold.
        thresholds: each 0 <= threshold < 1.

    Raises:
        ConfigurationError: the shapes differ, the probability is outside [0, 1] or NaN, or a threshold is out
            of range.

    Source:
        Segment Any Cell (SAC), through the Medical SAM Adapter framework that it builds on.

    Example:
        >>> threshold_mean([[1, 0]], [[0.6, 0.2]], [0.5, 0.1]).iou
        0.75
    """
    if not thresholds or not all(0 <= threshold < 1 for threshold in thresholds):
        raise ConfigurationError(f"thresholds: expected a list of 0 <= threshold < 1, found {thresholds}.")
    values = np.asarray(probability, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ConfigurationError(
            "probability: expected values in [0, 1], found others or NaN. Apply the sigmoid or softmax first."
        )
    counts = [foreground_counts(y, values > threshold) for threshold in thresholds]
    return OverlapScores(
        dice=float(np.mean([part.dice() for part in counts])),
        iou=float(np.mean([part.iou() for part in counts])),
    )


def average_foreground(
    counts: Sequence[ForegroundCounts], average: Average = "image", empty: Empty = "score"
) -> ForegroundMeans:
    """Average the foreground metrics of a dataset.

    Args:
        counts: one entry per image, from :func:`foreground_counts`.
        average: ``image`` computes each image's metrics and averages them; ``dataset`` adds up the areas of all
            images first, so that images count by their foreground.
        empty: ``score`` gives an image without foreground in both maps the value 1; ``skip`` leaves it out.

    Raises:
        ConfigurationError: an option is unknown.

    Example:
        >>> images = [ForegroundCounts(overlap=1, y=2, y_pred=2), ForegroundCounts(0, 0, 0)]
        >>> average_foreground(images).dice, average_foreground(images, empty="skip").dice
        (0.75, 0.5)
    """
    for name, value, known in (("average", average, Average), ("empty", empty, Empty)):
        if value not in get_args(known):
            raise ConfigurationError(
                f"{name}: found {value!r}, expected one of {', '.join(get_args(known))}."
            )
    used = [image for image in counts if empty == "score" or image.y or image.y_pred]
    skipped = len(counts) - len(used)
    if not used:
        return ForegroundMeans(math.nan, math.nan, math.nan, math.nan, math.nan, len(counts), skipped)
    if average == "dataset":
        total = used[0]
        for image in used[1:]:
            total = total.plus(image)
        rows = [total]
    else:
        rows = used
    precision = nan_mean([image.precision_recall().precision for image in rows])
    recall = nan_mean([image.precision_recall().recall for image in rows])
    return ForegroundMeans(
        dice=nan_mean([image.dice() for image in rows]),
        iou=nan_mean([image.iou() for image in rows]),
        precision=precision,
        recall=recall,
        f1_mean_pr=f1_mean_pr([precision], [recall]),
        images=len(counts),
        skipped_images=skipped,
    )
