"""Slow, obvious geometry of GeoJSON polygons."""

import itertools

import numpy as np


def signed_ring_area(ring: list[list[int]]) -> float:
    """Shoelace formula; positive is counter-clockwise in a plane whose y points up."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(ring)) / 2


def contains(ring: list[list[int]], x: float, y: float) -> bool:
    """Even-odd rule for a point that is not on the ring."""
    inside = False
    for (x0, y0), (x1, y1) in itertools.pairwise(ring):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            inside = not inside
    return inside


def rasterise(polygons: list[list[list[list[int]]]], height: int, width: int) -> np.ndarray:
    """How many polygons cover each pixel's centre, holes taken out."""
    count = np.zeros((height, width), dtype=int)
    for exterior, *holes in polygons:
        for row in range(height):
            for column in range(width):
                centre = (column + 0.5, row + 0.5)
                covered = contains(exterior, *centre) and not any(contains(hole, *centre) for hole in holes)
                count[row, column] += covered
    return count
