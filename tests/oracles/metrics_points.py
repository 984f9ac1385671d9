"""Centroid pairing and detection scores by the plain reading of their definitions, with loops over points."""

import itertools
import math

import numpy as np
from scipy.optimize import linear_sum_assignment

Pairs = set[tuple[int, int]]


def centroids(labels: np.ndarray) -> dict[int, tuple[float, float]]:
    found = {}
    for label in sorted({int(value) for value in labels.ravel()} - {0}):
        pixels = np.argwhere(labels == np.array(label, labels.dtype)).tolist()
        rows, columns = [r for r, _ in pixels], [c for _, c in pixels]
        found[label] = (sum(columns) / len(pixels), sum(rows) / len(pixels))
    return found


def cheapest_pairs(truth: np.ndarray, prediction: np.ndarray, cut_off: float) -> tuple[float, Pairs]:
    """The assignment of all points of the smaller set with the least sum of min(distance, cut_off)."""
    if len(truth) > len(prediction):
        cost, pairs = cheapest_pairs(prediction, truth, cut_off)
        return cost, {(j, i) for i, j in pairs}
    best: tuple[float, Pairs] = (math.inf, set())
    for columns in itertools.permutations(range(len(prediction)), len(truth)):
        pairs = set(enumerate(columns))
        cost = sum(min(math.dist(truth[i], prediction[j]), cut_off) for i, j in pairs)
        if cost < best[0]:
            best = (cost, pairs)
    return best


def hungarian(truth: np.ndarray, prediction: np.ndarray, radius: float) -> Pairs:
    _, pairs = cheapest_pairs(truth, prediction, math.inf)
    return {(i, j) for i, j in pairs if math.dist(truth[i], prediction[j]) <= radius}


def cut_off(truth: np.ndarray, prediction: np.ndarray, radius: float) -> Pairs:
    """The cheapest assignment with distances cut off at the radius, over the whole (n, m) matrix."""
    cost = np.array([[min(math.dist(t, p), radius) for p in prediction] for t in truth])
    pairs = zip(*linear_sum_assignment(cost.reshape(len(truth), len(prediction))), strict=True)
    return {(int(i), int(j)) for i, j in pairs if cost[i, j] < radius}


def greedy(truth: np.ndarray, prediction: np.ndarray, scores: np.ndarray, radius: float) -> Pairs:
    free, pairs = set(range(len(truth))), set()
    for j in sorted(range(len(prediction)), key=lambda j: -scores[j]):
        near = [(math.dist(truth[i], prediction[j]), i) for i in free]
        if near and min(near)[0] <= radius:
            free.remove(min(near)[1])
            pairs.add((min(near)[1], j))
    return pairs


def ratio(a: int, b: int) -> float:
    return a / b if b else math.nan


def scores_of(tp: int, fp: int, fn: int) -> tuple[float, float, float]:
    return ratio(tp, tp + fp), ratio(tp, tp + fn), ratio(2 * tp, 2 * tp + fp + fn)


def hovernet_scores(
    images: list[tuple[Pairs, list[int], list[int]]], classes: int
) -> list[tuple[float, ...]]:
    """Overall and class (P, R, F1) from pairs, true classes and predicted classes of every image."""
    tp = sum(len(pairs) for pairs, _, _ in images)
    rows = [
        scores_of(
            tp, sum(len(pred) for _, _, pred in images) - tp, sum(len(true) for _, true, _ in images) - tp
        )
    ]
    for c in range(classes):
        tp_c = fp_c = fn_c = fp_dc = fn_dc = 0
        for pairs, true, pred in images:
            for i, j in pairs:
                tp_c += true[i] == c and pred[j] == c
                fp_c += true[i] != c and pred[j] == c
                fn_c += true[i] == c and pred[j] != c
            fp_dc += sum(pred[j] == c for j in set(range(len(pred))) - {j for _, j in pairs})
            fn_dc += sum(true[i] == c for i in set(range(len(true))) - {i for i, _ in pairs})
        rows.append(
            (
                ratio(tp_c, tp_c + 2 * fp_c + fp_dc),
                ratio(tp_c, tp_c + 2 * fn_c + fn_dc),
                ratio(2 * tp_c, 2 * tp_c + 2 * fp_c + 2 * fn_c + fp_dc + fn_dc),
            )
        )
    return rows
