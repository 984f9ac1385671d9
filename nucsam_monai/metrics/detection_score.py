"""The scores that detection protocols report."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.metrics.ratios import precision_recall_f1


class DetectionScore(NamedTuple):
    """Precision, recall and F1, and how many were right, falsely predicted and missed.

    In the class scores of :class:`~nucsam_monai.metrics.HovernetDetection`, ``fp`` and ``fn`` count confusions
    and unpaired points once each, although the ratios weigh confusions twice.
    """

    precision: float
    recall: float
    f1: float
    tp: int
    fp: int
    fn: int


class DetectionResult(NamedTuple):
    """Scores of a data set: ``detection`` whatever the class, ``classes`` one per class id."""

    detection: DetectionScore
    classes: tuple[DetectionScore, ...]


def detection_result(weights: NDArray[np.int64], counts: NDArray[np.int64]) -> DetectionResult:
    """Return the scores of all points, then of each class.

    Args:
        weights: ``(1 + classes, 3)`` right predictions, false ones and misses as the ratios weigh them.
        counts: likewise, each point counted once.
    """
    rows = zip(precision_recall_f1(weights).tolist(), counts.tolist(), strict=True)
    detection, *classes = (DetectionScore(*ratios, *numbers) for ratios, numbers in rows)
    return DetectionResult(detection, tuple(classes))
