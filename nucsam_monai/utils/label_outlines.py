"""Trace the outlines of all nuclei of a label map at once, along the corners of their pixels."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from nucsam_monai.utils.label_runs import rank_ids

# A crack is a side of a pixel that faces a pixel outside of its nucleus, walked with the nucleus to the right: 0 the
# left side up, 1 the upper side to the right, 2 the right side down, 3 the lower side to the left. The pixel outside
# lies one step in the direction before.
_STEP_X, _STEP_Y = np.array([0, 1, 0, -1]), np.array([-1, 0, 1, 0])
_END_X, _END_Y = np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1])


class LabelOutlines(NamedTuple):
    """Hold rings around the parts of nuclei and around their holes, nucleus by nucleus.

    A nucleus has a polygon for each 4-connected part, largest first, and each polygon its exterior ring followed by
    the rings of its holes.

    Attributes:
        corners: ``(k, 2)`` int64 x and y of pixel corners where rings turn; the last one of a ring is its first again.
        ring_ends: ``(r + 1,)`` ring n is ``corners[ring_ends[n] : ring_ends[n + 1]]``.
        polygon_of_ring: ``(r,)`` rising.
        nucleus_of_polygon: ``(p,)`` rising rows of the table of nuclei.
    """

    corners: NDArray[np.int64]
    ring_ends: NDArray[np.int64]
    polygon_of_ring: NDArray[np.int64]
    nucleus_of_polygon: NDArray[np.int64]


class _Cracks(NamedTuple):
    """The cracks of some nuclei, in the order of their pixels.

    Attributes:
        rows: ``(n,)`` of the table of nuclei.
        pixels: ``(n,)`` index in the framed map.
        directions: ``(n,)`` 0 to 3.
        following: ``(n,)`` number of the crack that follows at the end.
        straight: ``(n,)`` whether that one has the same direction.
    """

    rows: NDArray[np.int64]
    pixels: NDArray[np.int64]
    directions: NDArray[np.int64]
    following: NDArray[np.int64]
    straight: NDArray[np.bool_]


class _Rings(NamedTuple):
    """Rings through the places where cracks turn; ring n begins at the first of its turns.

    Attributes:
        turns: ``(t,)`` numbers of the cracks at whose end a ring turns.
        ring: ``(t,)`` that each turn belongs to.
        position: ``(t,)`` of each turn on its ring.
        starts: ``(r,)`` first turn of each ring, rising.
        area: ``(r,)`` in pixels, negative around holes.
    """

    turns: NDArray[np.int64]
    ring: NDArray[np.int64]
    position: NDArray[np.int64]
    starts: NDArray[np.int64]
    area: NDArray[Any]


def label_outlines(instances: NDArray[Any], table: NDArray[Any]) -> LabelOutlines:
    """Trace the nuclei of a label map.

    The pixel in column x and row y covers the square from (x, y) to (x + 1, y + 1). Parts of a nucleus that touch only
    at a corner are polygons of their own; thus every ring is simple. Exteriors run counter-clockwise by the sign of
    their area, holes clockwise.

    Args:
        instances: ``(H, W)`` integers, 0 = background.
        table: rows with ``id`` and ``box_*_px`` of :data:`~nucsam_monai.utils.prediction.NUCLEUS_DTYPE`, in any order.
    """
    if not len(table):
        none = np.zeros(0, np.int64)
        return LabelOutlines(np.zeros((0, 2), np.int64), np.zeros(1, np.int64), none, none)
    left, top = (int(table[f"box_{axis}_min_px"].min()) for axis in "xy")
    right, bottom = (int(table[f"box_{axis}_max_px"].max()) for axis in "xy")
    framed = np.pad(instances[top:bottom, left:right], 1)
    parts = np.zeros(framed.shape, np.int32)
    width = framed.shape[1]

    def separate(rows: Iterable[int]) -> None:
        """Number the 4-connected parts of nuclei that have several."""
        for row in rows:
            x0, y0, x1, y1 = table[["box_x_min_px", "box_y_min_px", "box_x_max_px", "box_y_max_px"]][
                row
            ].tolist()
            window = (slice(y0 - top + 1, y1 - top + 1), slice(x0 - left + 1, x1 - left + 1))
            mask = framed[window] == table["id"][row]
            count, numbers = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
            if count > 2:
                parts[window][mask] = numbers[mask]

    cracks = _find_cracks(framed, table["id"], parts.ravel(), separate)
    y, x = np.divmod(cracks.pixels, width)
    corners = np.stack(
        (x + _END_X[cracks.directions] + (left - 1), y + _END_Y[cracks.directions] + (top - 1)), axis=1
    )
    rings = _join(cracks, corners)
    first = rings.turns[rings.starts]
    row, exterior = cracks.rows[first], cracks.directions[first] == 0
    holed = np.bincount(row[~exterior], minlength=len(table)) > 0
    separate(np.flatnonzero(holed & (np.bincount(row[exterior], minlength=len(table)) > 1)).tolist())
    part = parts.ravel()[cracks.pixels[first]]
    polygon = _polygons_of_rings(row * (int(part.max(initial=0)) + 1) + part, exterior)
    return _ordered(rings, corners, row[exterior], polygon, exterior)


def _ordered(
    rings: _Rings,
    corners: NDArray[np.int64],
    row_of_polygon: NDArray[np.int64],
    polygon_of_ring: NDArray[np.int64],
    exterior: NDArray[np.bool_],
) -> LabelOutlines:
    """Bring rings into the order of :class:`LabelOutlines` and close them."""
    by_size = np.lexsort((-np.bincount(polygon_of_ring, weights=rings.area), row_of_polygon))
    rank = np.empty_like(by_size)
    rank[by_size] = np.arange(len(by_size))
    polygon = rank[polygon_of_ring]
    order = np.lexsort((~exterior, polygon))
    lengths = np.bincount(rings.ring)[order] + 1
    ends = np.concatenate([[0], np.cumsum(lengths)])
    begin = np.empty(len(order), np.int64)
    begin[order] = ends[:-1]
    closed = np.empty((ends[-1], 2), np.int64)
    closed[begin[rings.ring] + rings.position] = corners[rings.turns]
    closed[ends[1:] - 1] = closed[ends[:-1]]
    return LabelOutlines(closed, ends, polygon[order], row_of_polygon[by_size])


def _find_cracks(
    framed: NDArray[Any],
    ids: NDArray[Any],
    parts: NDArray[np.int32],
    separate: Callable[[Iterable[int]], None],
) -> _Cracks:
    """Find the cracks of nuclei and what follows each.

    Args:
        framed: label map with a frame of zeros.
        ids: ``(n,)`` of the nuclei.
        parts: number of the 4-connected part of each pixel of the map; 0 where it was not needed so far.
        separate: fills ``parts`` for rows of nuclei.
    """
    width, labels = framed.shape[1], framed.ravel()
    beside, below = (np.flatnonzero(labels[step:] != labels[:-step]) for step in (1, width))
    sides = (beside + 1, below + width, beside, below)
    codes = np.concatenate([4 * pixels[labels[pixels] > 0] + side for side, pixels in enumerate(sides)])
    codes.sort(kind="stable")  # made for merging parts that are in order
    present, rank = rank_ids(labels[codes // 4])
    order = np.argsort(ids)
    place = np.minimum(np.searchsorted(ids[order], present), len(ids) - 1)
    rows = np.where(ids[order][place] == present, order[place], -1)[rank]
    codes, rows = codes[rows >= 0], rows[rows >= 0]
    pixel, direction = np.divmod(codes, 4)

    steps = _STEP_X + width * _STEP_Y
    before = (direction - 1) % 4
    ahead = pixel + steps[direction]
    beyond = ahead + steps[before]
    own = labels[pixel]
    goes_on, turns_left = labels[ahead] == own, labels[beyond] == own
    touching = np.flatnonzero(turns_left & ~goes_on)  # at a corner: of one part or of two?
    separate(np.unique(rows[touching]).tolist())
    turns_left[touching] = parts[pixel[touching]] == parts[beyond[touching]]
    straight = goes_on & ~turns_left
    next_code = np.where(straight, 4 * ahead + direction, 4 * pixel + (direction + 1) % 4)
    next_code = np.where(turns_left, 4 * beyond + before, next_code)
    return _Cracks(rows, pixel, direction, np.searchsorted(codes, next_code), straight)


def _join(cracks: _Cracks, corners: NDArray[np.int64]) -> _Rings:
    """Join the turns of cracks to rings by doubling the steps; ``corners`` ``(n, 2)`` are their ends."""
    turns = np.flatnonzero(~cracks.straight)
    follower = cracks.following[turns]
    walking = np.flatnonzero(cracks.straight[follower])
    while len(walking):
        follower[walking] = cracks.following[follower[walking]]
        walking = walking[cracks.straight[follower[walking]]]
    follower = np.searchsorted(turns, follower)
    numbers = np.arange(len(turns))
    first, jump = numbers, follower
    while not np.array_equal(first, lowest := np.minimum(first, first[jump])):
        first, jump = lowest, jump[jump]
    is_start = first == numbers
    left, jump = np.where(is_start, 0, 1), np.where(is_start, numbers, follower)
    while not is_start[jump].all():
        left, jump = left + left[jump], jump[jump]
    ring = (np.cumsum(is_start) - 1)[first]
    length = np.bincount(ring)[ring]
    ends = corners[turns[follower]]
    area = np.bincount(ring, weights=ends[:, 0] * (ends[:, 1] - corners[turns, 1]))
    return _Rings(turns, ring, (length - left) % np.maximum(length, 1), np.flatnonzero(is_start), area)


def _polygons_of_rings(part: NDArray[np.int64], exterior: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each ring the number of its exterior; ``part`` ``(r,)`` is the same for both."""
    polygon = np.cumsum(exterior) - 1
    parts = part[exterior]
    order = np.argsort(parts)
    polygon[~exterior] = order[np.searchsorted(parts, part[~exterior], sorter=order)]
    return polygon
