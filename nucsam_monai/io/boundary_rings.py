"""Rings along the cracks between pixels, of many masks at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

# A crack is a side of a pixel of the mask that faces a pixel outside, walked with the mask to the right: 0 the left
# side up, 1 the upper side to the right, 2 the right side down, 3 the lower side to the left. The pixel outside lies
# one step in the direction before.
_STEP_X, _STEP_Y = np.array([0, 1, 0, -1]), np.array([-1, 0, 1, 0])
_END_X, _END_Y = np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1])


@dataclass(frozen=True)
class BoundaryRings:
    """Boundaries of one mask.

    Attributes:
        exteriors: rings around parts of it, in the order of their uppermost and leftmost pixels: ``(n, 2)`` x and y of
            pixel corners, of which the last is the first again.
        holes: rings around holes, in the opposite sense.
        touch_at_corners: two of its pixels share a corner but no neighbour; the rings treat them as connected.
    """

    exteriors: list[np.ndarray] = field(default_factory=list)
    holes: list[np.ndarray] = field(default_factory=list)
    touch_at_corners: bool = False


def trace_boundaries(masks: Sequence[np.ndarray], origins: Sequence[tuple[int, int]]) -> list[BoundaryRings]:
    """Trace the boundaries of masks; array operations serve all of them together.

    Args:
        masks: ``(h, w)`` each, 0 or 1.
        origins: x and y of the first pixel of each.

    Returns:
        The rings of each mask; points only where a ring turns.
    """
    cracks = _find_cracks(masks, origins)
    turns = np.flatnonzero(~cracks.straight)
    follower = np.searchsorted(turns, _next_turn(cracks.following, cracks.straight)[turns]).tolist()
    corners, owners = cracks.ends[turns], cracks.owners[turns].tolist()
    on_left_side = (cracks.directions[turns] == 0).tolist()
    found = [BoundaryRings(touch_at_corners=touching) for touching in cracks.touching.tolist()]
    walked = bytearray(len(turns))
    for start in range(len(turns)):
        if walked[start]:
            continue
        ring: list[int] = []
        turn = start
        while not walked[turn]:
            walked[turn] = 1
            ring.append(turn)
            turn = follower[turn]
        ring.append(start)
        # The first pixel of a part has a turn at its left side; the one above a hole's first pixel has it below.
        rings = found[owners[start]]
        (rings.exteriors if on_left_side[start] else rings.holes).append(corners[ring])
    return found


class _Cracks(NamedTuple):
    """All cracks of all masks, in the order of their pixels.

    Attributes:
        owners: ``(n,)`` number of the mask.
        directions: ``(n,)`` 0 to 3.
        ends: ``(n, 2)`` x and y of the corner where it ends.
        following: ``(n,)`` number of the crack that goes on there.
        straight: ``(n,)`` whether that one has the same direction.
        touching: ``(masks,)`` see :class:`BoundaryRings`.
    """

    owners: np.ndarray
    directions: np.ndarray
    ends: np.ndarray
    following: np.ndarray
    straight: np.ndarray
    touching: np.ndarray


def _find_cracks(masks: Sequence[np.ndarray], origins: Sequence[tuple[int, int]]) -> _Cracks:
    # All masks lie behind each other in flat arrays, each with a frame of one pixel.
    widths = np.array([mask.shape[1] + 2 for mask in masks], dtype=np.int64)
    sizes = np.array([(mask.shape[0] + 2) * (mask.shape[1] + 2) for mask in masks], dtype=np.int64)
    ends = np.cumsum(sizes)
    inside, upper, lower = np.zeros((3, sizes.sum()), dtype=bool)
    for mask, width, size, end in zip(masks, widths.tolist(), sizes.tolist(), ends.tolist(), strict=True):
        framed, above, below = (flat[end - size : end].reshape(-1, width) for flat in (inside, upper, lower))
        framed[1:-1, 1:-1] = mask
        np.greater(framed[1:], framed[:-1], out=above[1:])
        np.greater(framed[:-1], framed[1:], out=below[:-1])
    right, left = np.flatnonzero(inside[:-1] > inside[1:]), np.flatnonzero(inside[1:] > inside[:-1]) + 1
    sides = (left, np.flatnonzero(upper), right, np.flatnonzero(lower))
    codes = np.sort(np.concatenate([4 * pixels + direction for direction, pixels in enumerate(sides)]))
    pixel, direction = np.divmod(codes, 4)
    owner = np.searchsorted(ends, pixel, side="right")
    width = widths[owner]

    ahead = pixel + _STEP_X[direction] + width * _STEP_Y[direction]
    before = (direction - 1) % 4
    beyond = ahead + _STEP_X[before] + width * _STEP_Y[before]
    turns_left = inside[beyond]
    straight = inside[ahead] & ~turns_left
    next_code = np.where(straight, 4 * ahead + direction, 4 * pixel + (direction + 1) % 4)
    next_code = np.where(turns_left, 4 * beyond + before, next_code)
    touching = np.bincount(owner[turns_left & ~inside[ahead]], minlength=len(masks)) > 0

    row, column = np.divmod(pixel - (ends - sizes)[owner], width)
    corner = np.stack((column + _END_X[direction], row + _END_Y[direction]), axis=1)
    corner += np.array(origins, dtype=np.int64).reshape(-1, 2)[owner] - 1
    return _Cracks(owner, direction, corner, np.searchsorted(codes, next_code), straight, touching)


def _next_turn(following: np.ndarray, straight: np.ndarray) -> np.ndarray:
    """Return the first crack behind each one at whose end the boundary turns, by doubling the steps."""
    while straight[following].any():
        following = np.where(straight[following], following[following], following)
    return following
