"""Greedy suppression of near points by comparing all with all."""

import math


def suppress_near_points_slow(points, scores, radius):
    order = sorted(range(len(points)), key=lambda index: -scores[index])
    kept = []
    for index in order:
        if all(math.dist(points[index], points[other]) > radius for other in kept):
            kept.append(index)
    return kept
