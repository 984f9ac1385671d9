"""The even-odd rule for one pixel centre at a time, in exact arithmetic."""

from fractions import Fraction

import numpy as np


def polygon_mask(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the ``(H, W)`` bool mask of pixels whose centre (index + 1/2) is inside the polygon."""
    vertices = [(Fraction(float(px)), Fraction(float(py))) for px, py in zip(x, y, strict=True)]
    mask = np.zeros(shape, dtype=bool)
    for row in range(shape[0]):
        for column in range(shape[1]):
            mask[row, column] = _is_inside(column + Fraction(1, 2), row + Fraction(1, 2), vertices)
    return mask


def _is_inside(px: Fraction, py: Fraction, vertices: list[tuple[Fraction, Fraction]]) -> bool:
    """Count the edges that a ray to the left meets; a point on a left or top edge is inside."""
    inside = False
    for (ax, ay), (bx, by) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
        if (ay <= py) != (by <= py) and ax + (py - ay) * (bx - ax) / (by - ay) <= px:
            inside = not inside
    return inside
