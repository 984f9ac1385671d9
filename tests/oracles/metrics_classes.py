"""Class-wise and object scores by the plain reading of their definitions, on pixel sets."""

import itertools
import math

import numpy as np

from tests.oracles.metrics_instance import instances_of, iou_of, panoptic

Classes = dict[int, int]


def only(labels: np.ndarray, classes: Classes, class_id: int) -> np.ndarray:
    """The map with nothing but the instances of one class."""
    kept = labels.copy()
    for label in np.unique(labels).tolist():
        if label and classes[label] != class_id:
            kept[labels == np.array(label, labels.dtype)] = 0
    return kept


def class_panoptic(
    y: np.ndarray, y_pred: np.ndarray, y_classes: Classes, y_pred_classes: Classes, class_id: int
) -> tuple[float, ...]:
    """(dq, sq, pq, tp, fp, fn) of one class."""
    return panoptic(only(y, y_classes, class_id), only(y_pred, y_pred_classes, class_id))


def mean_of(values: list[float]) -> float:
    valid = [value for value in values if not math.isnan(value)]
    return sum(valid) / len(valid) if valid else math.nan


def most_matches(y: np.ndarray, y_pred: np.ndarray, threshold: float) -> int:
    """The most one-to-one pairs with IoU >= threshold, by trying all of them."""
    truth, prediction = instances_of(y), instances_of(y_pred)
    fits = [[float(iou_of(t, p)) >= threshold for p in prediction] for t in truth]
    if len(truth) > len(prediction):
        fits = [list(column) for column in zip(*fits, strict=True)]
    few, many = sorted((len(truth), len(prediction)))
    return max(sum(fits[i][j] for i, j in enumerate(p)) for p in itertools.permutations(range(many), few))


def dice2(y: np.ndarray, y_pred: np.ndarray) -> float:
    truth, prediction = instances_of(y), instances_of(y_pred)
    if not truth:
        return math.nan
    overlap = area = 0
    for t in truth:
        for p in prediction:
            if t & p:
                overlap += 2 * len(t & p)
                area += len(t) + len(p)
    return overlap / area if area else 0.0
