"""Slow, obvious rays and polygons of StarDist, and the polygon that the pixels of a ray agree on."""

import math

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.special import softmax

from tests.oracles.polygon_raster import contains


def directions(count: int = 32) -> list[tuple[float, float]]:
    """(down, right) of each ray, clockwise from the right."""
    return [(math.sin(2 * math.pi * k / count), math.cos(2 * math.pi * k / count)) for k in range(count)]


def ray_lengths(instances: np.ndarray) -> np.ndarray:
    """Walk from every pixel in every direction until the nucleus or the image ends."""
    height, width = instances.shape
    rays = np.zeros((32, height, width), dtype=np.float32)
    for row in range(height):
        for column in range(width):
            for k, (down, right) in enumerate(directions()):
                step, here = 0, instances[row, column]
                while here and here == instances[row, column]:
                    step += 1
                    y, x = round(row + step * down), round(column + step * right)
                    here = instances[y, x] if 0 <= y < height and 0 <= x < width else 0
                rays[k, row, column] = step - 0.5 if step else 0
    return rays


def rasterise(row: int, column: int, rays: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Which pixels' centres lie in the polygon of a pixel's rays, ``(H, W)`` bool."""
    ring = [(column + d * right, row + d * down) for d, (down, right) in zip(rays, directions(), strict=True)]
    ring.append(ring[0])
    mask = np.zeros(shape, dtype=bool)
    for y in range(shape[0]):
        for x in range(shape[1]):
            mask[y, x] = contains(ring, x, y)
    return mask


def paint(probability: np.ndarray, rays: np.ndarray, threshold: float) -> tuple[np.ndarray, list[float]]:
    """Take the most probable polygon that overlaps none before it, until none is left; earlier ones lie on top."""
    height, width = probability.shape
    candidates = []
    for row in range(height):
        for column in range(width):
            around = probability[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            if probability[row, column] >= threshold and probability[row, column] == around.max():
                candidates.append((-probability[row, column], row, column))
    painted, masks, scores = np.zeros((height, width), dtype=int), [], []
    for negative, row, column in sorted(candidates):
        mask = rasterise(row, column, rays[:, row, column], (height, width))
        if not mask.any() or any((mask & one).sum() / (mask | one).sum() > 0.4 for one in masks):
            continue
        masks.append(mask)
        if (mask & (painted == 0)).any():
            scores.append(-negative)
            painted[mask & (painted == 0)] = len(scores)
    return painted, scores


def refined_rays(rays: np.ndarray, confidence: np.ndarray, samples: int) -> np.ndarray:
    """Ask each point of each pixel's rays, one after the other."""
    refined = np.zeros_like(rays)
    for k, (down, right) in enumerate(directions(len(rays))):
        for row, column in np.ndindex(rays.shape[1:]):
            reach = max(rays[k, row, column], 0)
            lengths, weights = [rays[k, row, column]], [confidence[k, row, column]]
            for n in range(1, samples + 1):
                away = n / samples * reach
                place = [[row + away * down], [column + away * right]]
                there = [
                    map_coordinates(one[k], place, order=1, mode="nearest")[0] for one in (rays, confidence)
                ]
                lengths.append(away + there[0])
                weights.append(there[1])
            refined[k, row, column] = np.dot(softmax(weights), lengths)
    return refined
