"""Painting annotated outlines into an instance map."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Overlap = Literal["first", "last"]


def polygon_mask(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """Rasterise one polygon by the even-odd rule: a pixel belongs to it if its centre is inside.

    The image's top left corner is ``(0, 0)`` and the centre of its first pixel ``(0.5, 0.5)``, as slide
    viewers store outlines. A centre exactly on an outline counts on the left and top side only, so polygons
    that share an edge share no pixel. The mean area equals the polygon's; ``cv2.fillPoly`` and
    ``skimage.draw.polygon`` also paint the pixels on the outline, which enlarges nuclei that were traced on
    integer positions by about a tenth.

    Args:
        x: ``(V,)`` columns of the vertices, in pixels.
        y: ``(V,)`` rows of the vertices, in pixels.
        shape: ``(H, W)`` of the image; parts outside are cut off.

    Returns:
        ``(h, w)`` bool over the polygon's box inside the image, and the box's first row and column.

    Example:
        >>> mask, row, column = polygon_mask(np.array([1, 4, 4, 1]), np.array([2, 2, 4, 4]), (9, 9))
        >>> mask.shape, bool(mask.all()), row, column
        ((2, 3), True, 2, 1)
    """
    x, y = x - 0.5, y - 0.5  # from here on pixel centres lie at integers
    top, bottom = _first_and_end(y, shape[0])
    left, right = _first_and_end(x, shape[1])
    rows = np.arange(top, bottom)
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    # An edge crosses the rows from its upper end to before its lower end; horizontal edges cross none.
    crosses = (y[:, None] <= rows) != (y_next[:, None] <= rows)
    edge, row = np.nonzero(crosses)
    # Divided last: a crossing that lies exactly on a pixel centre is then computed exactly.
    crossing = x[edge] + (rows[row] - y[edge]) * (x_next[edge] - x[edge]) / (y_next[edge] - y[edge])
    # Every crossing turns inside to outside, or back, for the pixels from it to the right.
    first_right = np.clip(np.ceil(crossing), left, right).astype(np.int64) - left
    turns = np.zeros((len(rows), right - left + 1), dtype=np.int64)
    np.add.at(turns, (row, first_right), 1)
    return np.cumsum(turns, axis=1)[:, :-1] % 2 == 1, top, left


def paint_polygons(
    polygons: Sequence[np.ndarray], shape: tuple[int, int], overlap: Overlap = "first"
) -> np.ndarray:
    """Paint polygons with the ids 1..n in their order.

    Args:
        polygons: ``(V, 2)`` vertices ``(x, y)`` in pixels each.
        shape: ``(H, W)`` of the map.
        overlap: whether the first or the last polygon keeps a pixel that several claim.

    Returns:
        ``(H, W)`` int32; a polygon that is hidden, outside or smaller than a pixel leaves a gap in the ids.
    """
    instances = np.zeros(shape, dtype=np.int32)
    numbered = list(enumerate(polygons, start=1))
    # Painting backwards lets the first one win without asking what is there already.
    for instance_id, vertices in reversed(numbered) if overlap == "first" else numbered:
        mask, top, left = polygon_mask(vertices[:, 0], vertices[:, 1], shape)
        instances[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = instance_id
    return instances


def _first_and_end(positions: np.ndarray, size: int) -> tuple[int, int]:
    """Return the half-open range of pixels inside the image that a polygon can touch along one axis."""
    first = int(np.clip(np.ceil(positions.min()), 0, size))
    return first, int(np.clip(np.floor(positions.max()) + 1, first, size))
