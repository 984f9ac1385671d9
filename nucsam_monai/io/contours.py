"""Outlines of nuclei as polygons along the corners of their pixels."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import cv2
import numpy as np

from nucsam_monai.io.boundary_rings import BoundaryRings, trace_boundaries

Ring = list[list[int]]
"""Closed ring of ``[x, y]`` pixel corners; the last point repeats the first."""

Polygon = list[Ring]
"""Exterior ring followed by the rings of the holes."""

_PIXELS_AT_ONCE = 2**20


def nuclei_polygons(instances: np.ndarray, table: np.ndarray) -> Iterator[tuple[int, list[Polygon]]]:
    """Yield the id and the polygons of one nucleus after the other.

    Args:
        instances: ``(H, W)`` integers, 0 = background.
        table: rows with ``id`` and ``box_*_px`` of :data:`~nucsam_monai.utils.prediction.NUCLEUS_DTYPE`.

    Yields:
        The id and what :func:`mask_polygons` returns, in coordinates of the whole image.
    """
    boxes = ("id", "box_x_min_px", "box_y_min_px", "box_x_max_px", "box_y_max_px")
    ids: list[int] = []
    masks: list[np.ndarray] = []
    origins: list[tuple[int, int]] = []
    pixels = 0
    for nucleus_id, x_min, y_min, x_max, y_max in table[list(boxes)].tolist():
        ids.append(nucleus_id)
        masks.append(instances[y_min:y_max, x_min:x_max] == nucleus_id)
        origins.append((x_min, y_min))
        pixels += masks[-1].size
        if pixels >= _PIXELS_AT_ONCE:
            yield from zip(ids, _polygons_of(masks, origins), strict=True)
            ids, masks, origins, pixels = [], [], [], 0
    yield from zip(ids, _polygons_of(masks, origins), strict=True)


def mask_polygons(mask: np.ndarray, *, x_offset_px: int = 0, y_offset_px: int = 0) -> list[Polygon]:
    """Trace a mask along its pixel corners, so that the area of the polygons is its number of pixels.

    The pixel in column x and row y covers the square from (x, y) to (x + 1, y + 1), as in QuPath. Parts that
    touch only at a corner are polygons of their own; thus every ring is simple and the result is valid by
    OGC's rules. Exteriors run counter-clockwise by the sign of their area (RFC 7946), holes clockwise.

    Args:
        mask: ``(h, w)`` uint8, 0 or 1, or bool.
        x_offset_px: x of the mask's first column.
        y_offset_px: y of the mask's first row.

    Returns:
        One polygon per 4-connected part, the largest first; empty for an empty mask.

    Example:
        >>> mask_polygons(np.ones((1, 2), dtype=np.uint8))
        [[[[0, 0], [2, 0], [2, 1], [0, 1], [0, 0]]]]
    """
    return next(_polygons_of([mask], [(x_offset_px, y_offset_px)]))


def _polygons_of(masks: Sequence[np.ndarray], origins: Sequence[tuple[int, int]]) -> Iterator[list[Polygon]]:
    return map(_assemble, trace_boundaries(masks, origins), masks, origins)


def _assemble(rings: BoundaryRings, mask: np.ndarray, origin: tuple[int, int]) -> list[Polygon]:
    """Return the polygons of one mask; only where its rings leave open what belongs together, look at its parts."""
    exteriors, holes = ([ring.tolist() for ring in kind] for kind in (rings.exteriors, rings.holes))
    if rings.touch_at_corners or (holes and len(exteriors) > 1):
        count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
        if count > 2:
            separate = [parts == part for part in range(1, count)]
            polygons = [polygon for (polygon,) in _polygons_of(separate, [origin] * len(separate))]
            return sorted(polygons, key=_area, reverse=True)
    if len(exteriors) == 1:
        return [[*exteriors, *holes]]
    return sorted(([exterior] for exterior in exteriors), key=_area, reverse=True)


def _area(polygon: Polygon) -> int:
    """Return the pixels of a polygon; all sides run along an axis, and holes count against it."""
    return sum(x * (y - previous_y) for ring in polygon for (_, previous_y), (x, y) in pairwise(ring))
