"""Outlines of nuclei as polygons along the corners of their pixels."""

from collections.abc import Iterator

import cv2
import numpy as np

Ring = list[list[int]]
"""Closed ring of ``[x, y]`` pixel corners; the last point repeats the first."""

Polygon = list[Ring]
"""Exterior ring followed by the rings of the holes."""


def nuclei_polygons(instances: np.ndarray, table: np.ndarray) -> Iterator[tuple[int, list[Polygon]]]:
    """Yield the id and the polygons of one nucleus after the other.

    Args:
        instances: ``(H, W)`` integers, 0 = background.
        table: rows with ``id`` and ``box_*_px`` of :data:`~nucsam_monai.utils.prediction.NUCLEUS_DTYPE`.

    Yields:
        The id and what :func:`mask_polygons` returns, in coordinates of the whole image.
    """
    boxes = ("id", "box_x_min_px", "box_y_min_px", "box_x_max_px", "box_y_max_px")
    for nucleus_id, x_min, y_min, x_max, y_max in table[list(boxes)].tolist():
        mask = (instances[y_min:y_max, x_min:x_max] == nucleus_id).view(np.uint8)
        yield nucleus_id, mask_polygons(mask, x_offset_px=x_min, y_offset_px=y_min)


def mask_polygons(mask: np.ndarray, *, x_offset_px: int = 0, y_offset_px: int = 0) -> list[Polygon]:
    """Trace a mask along its pixel corners, so that the area of the polygons is its number of pixels.

    The pixel in column x and row y covers the square from (x, y) to (x + 1, y + 1), as in QuPath. Parts that
    touch only at a corner are polygons of their own; thus every ring is simple and the result is valid by
    OGC's rules. Exteriors run counter-clockwise by the sign of their area (RFC 7946), holes clockwise.

    Args:
        mask: ``(h, w)`` uint8, 0 or 1.
        x_offset_px: x of the mask's first column.
        y_offset_px: y of the mask's first row.

    Returns:
        One polygon per 4-connected part, the largest first; empty for an empty mask.

    Example:
        >>> mask_polygons(np.ones((1, 2), dtype=np.uint8))
        [[[[0, 0], [2, 0], [2, 1], [0, 1], [0, 0]]]]
    """
    count, parts = cv2.connectedComponents(mask, connectivity=4)
    if count == 2:
        return [_trace(mask, x_offset_px, y_offset_px)]
    polygons = [_trace((parts == part).view(np.uint8), x_offset_px, y_offset_px) for part in range(1, count)]
    areas = np.bincount(parts.ravel(), minlength=count)[1:]
    return [polygons[index] for index in np.argsort(-areas, kind="stable")]


def _trace(part: np.ndarray, x_offset_px: int, y_offset_px: int) -> Polygon:
    """Trace one 4-connected part.

    On a lattice of twice the resolution a pixel becomes the 3 x 3 points of its closed square: even
    coordinates are corners. OpenCV's contours of this lattice run along pixel edges but cut every concave
    corner by a diagonal step, whose missing point is the one with even coordinates.
    """
    height, width = part.shape
    lattice = np.zeros((2 * height + 1, 2 * width + 1), dtype=np.uint8)
    lattice[:-1, :-1] = part.repeat(2, axis=0).repeat(2, axis=1)
    lattice[1:] |= lattice[:-1]
    lattice[:, 1:] |= lattice[:, :-1]
    contours, hierarchy = cv2.findContours(lattice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    polygon: Polygon = []
    for contour, (_, _, _, parent) in zip(contours, hierarchy[0].tolist(), strict=True):
        is_hole = parent >= 0
        ring = _corners(contour[:, 0].tolist(), x_offset_px, y_offset_px)
        if (cv2.contourArea(contour, oriented=True) > 0) == is_hole:
            ring.reverse()
        ring.append(ring[0])
        polygon.insert(len(polygon) if is_hole else 0, ring)
    return polygon


def _corners(lattice_points: Ring, x_offset_px: int, y_offset_px: int) -> Ring:
    """Return the pixel corners on a contour of the lattice, with the concave ones that it cuts."""
    corners: Ring = []
    # A loop: contours have some dozen points, for which array operations take longer.
    previous_x, previous_y = lattice_points[-1]
    for x, y in lattice_points:
        if x != previous_x and y != previous_y:
            concave_x, concave_y = (previous_x, y) if previous_x % 2 == y % 2 == 0 else (x, previous_y)
            corners.append([concave_x // 2 + x_offset_px, concave_y // 2 + y_offset_px])
        if x % 2 == y % 2 == 0:
            corners.append([x // 2 + x_offset_px, y // 2 + y_offset_px])
        previous_x, previous_y = x, y
    return corners
