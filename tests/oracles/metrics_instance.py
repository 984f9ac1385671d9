"""Instance metrics by the plain reading of their definitions: pixel sets, fractions, every assignment."""

import math
from fractions import Fraction
from functools import cache

import numpy as np
from scipy.optimize import linear_sum_assignment

Pixels = set[tuple[int, int]]


def instances_of(labels: np.ndarray) -> list[Pixels]:
    """Pixel sets of the instances, in rising order of their ids."""
    ids = sorted({int(value) for value in labels.ravel()} - {0})
    return [{(int(r), int(c)) for r, c in np.argwhere(labels == np.array(i, labels.dtype))} for i in ids]


def iou_of(a: Pixels, b: Pixels) -> Fraction:
    return Fraction(len(a & b), len(a | b))


def aji(y: np.ndarray, y_pred: np.ndarray) -> float:
    truth, prediction = instances_of(y), instances_of(y_pred)
    if not truth:
        return math.nan
    intersection = union = 0
    used = set()
    for nucleus in truth:
        best, best_iou = None, Fraction(0)
        for index, candidate in enumerate(prediction):
            if iou_of(nucleus, candidate) > best_iou:
                best, best_iou = index, iou_of(nucleus, candidate)
        if best is None:
            union += len(nucleus)
        else:
            intersection += len(nucleus & prediction[best])
            union += len(nucleus | prediction[best])
            used.add(best)
    union += sum(len(p) for index, p in enumerate(prediction) if index not in used)
    return float(Fraction(intersection, union))


def best_assignment(truth: list[Pixels], prediction: list[Pixels]) -> tuple[Fraction, int]:
    """Largest (sum of IoU, sum of intersections) over all one-to-one assignments, by trying all of them."""

    @cache
    def best_from(row: int, free: frozenset[int]) -> tuple[Fraction, int]:
        if row == len(truth):
            return Fraction(0), 0
        options = [best_from(row + 1, free)]
        for column in free:
            shared = len(truth[row] & prediction[column])
            if shared:
                iou_sum, overlap = best_from(row + 1, free - {column})
                options.append((iou_sum + iou_of(truth[row], prediction[column]), overlap + shared))
        return max(options)

    return best_from(0, frozenset(range(len(prediction))))


def aji_plus(y: np.ndarray, y_pred: np.ndarray) -> float:
    truth, prediction = instances_of(y), instances_of(y_pred)
    if not truth:
        return math.nan
    _, intersection = best_assignment(truth, prediction)
    area = sum(map(len, truth)) + sum(map(len, prediction))
    return float(Fraction(intersection, area - intersection))


def dense_iou(y: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    truth, prediction = instances_of(y), instances_of(y_pred)
    ious = [[float(iou_of(t, p)) for p in prediction] for t in truth]
    return np.array(ious).reshape(len(truth), len(prediction))


def aji_plus_dense(y: np.ndarray, y_pred: np.ndarray) -> float:
    """AJI+ through one assignment over the whole (n, m) matrix; for maps without ties."""
    truth, prediction = instances_of(y), instances_of(y_pred)
    intersection = union = 0
    paired_truth, paired_prediction = set(), set()
    for i, j in zip(*linear_sum_assignment(-dense_iou(y, y_pred)), strict=True):
        if truth[i] & prediction[j]:
            intersection += len(truth[i] & prediction[j])
            union += len(truth[i] | prediction[j])
            paired_truth.add(i)
            paired_prediction.add(j)
    union += sum(len(t) for i, t in enumerate(truth) if i not in paired_truth)
    union += sum(len(p) for j, p in enumerate(prediction) if j not in paired_prediction)
    return intersection / union


def panoptic(y: np.ndarray, y_pred: np.ndarray, match_iou: float = 0.5) -> tuple[float, ...]:
    """(dq, sq, pq, tp, fp, fn) for thresholds of 0.5 and more."""
    truth, prediction = instances_of(y), instances_of(y_pred)
    matched = [v for t in truth for p in prediction if (v := iou_of(t, p)) > Fraction(match_iou)]
    tp = len(matched)
    fp, fn = len(prediction) - tp, len(truth) - tp
    if not truth:
        return math.nan, math.nan, math.nan, tp, fp, fn
    dq = tp / (tp + fp / 2 + fn / 2)
    sq = float(sum(matched)) / (tp + 1e-6)
    return dq, sq, dq * sq, tp, fp, fn
