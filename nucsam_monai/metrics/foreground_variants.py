"""Foreground metrics as single papers compute them, and the ways to average them.

None of these values may be compared with those of :mod:`nucsam_monai.metrics.foreground`.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike

from nucsam_monai.metrics.foreground import ForegroundCounts, f1_mean_pr, foreground_counts
from nucsam_monai.metrics.means import nan_mean
from nucsam_monai.utils.errors import ConfigurationError

Average = Literal["image", "dataset"]
Empty = Literal["score", "skip"]

FIVE_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


class WeightedScores(NamedTuple):
    """F1 and IoU of background and foreground, weighted by their area in the ground truth."""

    weighted_f1: float
    weighted_iou: float


class OverlapScores(NamedTuple):
    """Dice and IoU of the foreground in a variant that the function names."""

    dice: float
    iou: float


class ForegroundMeans(NamedTuple):
    """Foreground metrics of a data set; NaN if every image was skipped."""

    dice: float
    iou: float
    precision: float
    recall: float
    f1_mean_pr: float
    images: int
    skipped_images: int


def weighted_scores(y: ArrayLike, y_pred: ArrayLike) -> WeightedScores:
    """Return F1 and IoU averaged over background and foreground with their frequency in ``y`` as weight.

    The background dominates, so the values lie far above those of the foreground alone.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool.
        y_pred: ``(H, W)`` prediction, likewise.

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
    counts = foreground_counts(y, y_pred)
    pixels = np.size(y)
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


def smoothed_overlap(y: ArrayLike, y_pred: ArrayLike, smooth: float = 1.0) -> OverlapScores:
    """Return Dice and IoU with a constant added to numerator and denominator.

    Only small foregrounds notice: above ten thousand pixels the difference is below 1e-4. Two empty maps
    give 1, and a false positive or a miss of a whole image a little more than 0.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool.
        y_pred: ``(H, W)`` prediction, likewise.
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
    """Average the foreground metrics of a data set.

    Args:
        counts: one entry per image, from :func:`nucsam_monai.metrics.foreground_counts`.
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
