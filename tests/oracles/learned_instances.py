"""Distance maps and the nuclei that they part, pixel by pixel."""

import heapq
import itertools
import math

import numpy as np

from tests.oracles.flood_fill import flood_fill


def nucleus_distance(instances):
    """Take the nearest pixel outside of each pixel's nucleus, out of all pixels."""
    depth = np.zeros(instances.shape)
    pixels = list(np.ndindex(*instances.shape))
    for nucleus in set(instances.ravel().tolist()) - {0}:
        outside = [pixel for pixel in pixels if instances[pixel] != nucleus]
        own = [pixel for pixel in pixels if instances[pixel] == nucleus]
        for pixel in own:
            depth[pixel] = min((math.dist(pixel, other) for other in outside), default=1)
        deepest = max(depth[pixel] for pixel in own)
        for pixel in own:
            depth[pixel] /= deepest
    return depth


def neighbours(pixel, shape):
    for step in itertools.product((-1, 0, 1), repeat=2):
        y, x = pixel[0] + step[0], pixel[1] + step[1]
        if step != (0, 0) and 0 <= y < shape[0] and 0 <= x < shape[1]:
            yield y, x


def markers_of(foreground, distance, rule):
    deep = (foreground >= rule.threshold) & (distance > rule.marker_threshold)
    return [marker for marker in flood_fill(deep) if len(marker) >= rule.min_marker_px]


def distance_instances(foreground, distance, rule):
    """Flood from all markers at once, the deepest pixel next; return a label map with any ids."""
    shape = foreground.shape
    labels = np.zeros(shape, dtype=int)
    queue = []
    for number, marker in enumerate(markers_of(foreground, distance, rule), start=1):
        for pixel in marker:
            labels[pixel] = number
            heapq.heappush(queue, (-distance[pixel], pixel))
    mask = foreground >= rule.threshold
    while queue:
        _, pixel = heapq.heappop(queue)
        for other in neighbours(pixel, shape):
            if mask[other] and not labels[other]:
                labels[other] = labels[pixel]
                heapq.heappush(queue, (-distance[other], other))
    for component in flood_fill(mask & (labels == 0)):
        number = labels.max() + 1
        for pixel in component:
            labels[pixel] = number
    for number in range(1, labels.max() + 1):
        own = labels == number
        if np.count_nonzero(own) < rule.min_area_px or (
            own.any() and score(own, foreground, distance) < rule.min_score
        ):
            labels[own] = 0
    return labels


def score(own, foreground, distance):
    return np.float32(foreground[own].mean() * min(max(distance[own].max(), 0), 1))


def shallowest_on_the_way(mask, distance, start):
    """Return for each pixel the depth of the shallowest pixel before it on the best way from ``start``."""
    best = np.full(mask.shape, -np.inf)
    for pixel in start:
        best[pixel] = np.inf
    changed = True
    while changed:
        changed = False
        for pixel in zip(*np.nonzero(mask), strict=True):
            for other in neighbours(pixel, mask.shape):
                through = min(best[other], distance[other]) if mask[other] else -np.inf
                if through > best[pixel]:
                    best[pixel], changed = through, True
    return best
