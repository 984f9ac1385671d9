"""Foreground metrics by the plain reading of their definitions: pixel sets, all pairs of boundary pixels."""

import math

import numpy as np

Pixels = set[tuple[int, int]]


def foreground_of(labels: np.ndarray) -> Pixels:
    return {(int(r), int(c)) for r, c in np.argwhere(labels > 0)}


def counts(y: np.ndarray, y_pred: np.ndarray) -> tuple[int, int, int]:
    """(shared, ground truth, predicted) pixels."""
    truth, prediction = foreground_of(y), foreground_of(y_pred)
    return len(truth & prediction), len(truth), len(prediction)


def dice(y: np.ndarray, y_pred: np.ndarray) -> float:
    shared, truth, prediction = counts(y, y_pred)
    return 2 * shared / (truth + prediction) if truth + prediction else 1.0


def iou(y: np.ndarray, y_pred: np.ndarray) -> float:
    shared, truth, prediction = counts(y, y_pred)
    return shared / (truth + prediction - shared) if truth + prediction else 1.0


def precision(y: np.ndarray, y_pred: np.ndarray) -> float:
    shared, truth, prediction = counts(y, y_pred)
    if not truth and not prediction:
        return 1.0
    return shared / prediction if prediction else 0.0


def recall(y: np.ndarray, y_pred: np.ndarray) -> float:
    return precision(y_pred, y)


def boundary_of(pixels: Pixels) -> Pixels:
    return {(r, c) for r, c in pixels if not {(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)} <= pixels}


def percentile_of(values: list[float], percentile: float) -> float:
    ordered = sorted(values)
    position = (len(ordered) - 1) * percentile / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def hausdorff(y: np.ndarray, y_pred: np.ndarray, percentile: float = 100) -> float:
    truth, prediction = boundary_of(foreground_of(y)), boundary_of(foreground_of(y_pred))
    if not truth and not prediction:
        return 0.0
    if not truth or not prediction:
        return math.sqrt(y.shape[0] ** 2 + y.shape[1] ** 2)
    return max(
        percentile_of([min(math.dist(a, b) for b in target) for a in source], percentile)
        for source, target in ((truth, prediction), (prediction, truth))
    )
