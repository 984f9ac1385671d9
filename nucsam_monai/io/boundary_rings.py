"""Rings along the cracks between pixels, of many masks at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

# A crack is a side of a pixel of the mask that faces a pixel outside, walked with the mask to the right: 0 the left side
# up, 1 the upper side to the right, 2 the right side down, 3 the lower side to the left. The pixel outside lies one
# step in the direction before.
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
    widths = np.array([mask.shape[1] + 2 for mask in masks], dtype=np.int64)
    ends = np.cumsum([(mask.shape[0] + 2) * (mask.shape[1] + 2) for mask in masks], dtype=np.int64)
    inside, upper, lower = np.zeros((3, ends[-1] if len(ends) else 0), dtype=bool)
    for mask, width, end in zip(masks, widths.tolist(), ends.tolist(), strict=True):
        start = end - (mask.shape[0] + 2) * width
        framed = inside[start:end].reshape(-1, width)
        framed[1:-1, 1:-1] = mask
        np.greater(framed[1:], framed[:-1], out=upper[start:end].reshape(-1, width)[1:])
        np.greater(framed[:-1], framed[1:], out=lower[start:end].reshape(-1, width)[:-1])
    right, left = np.flatnonzero(inside[:-1] > inside[1:]), np.flatnonzero(inside[1:] > inside[:-1]) + 1
    sides = (left, np.flatnonzero(upper), right, np.flatnonzero(lower))
    cracks = np.sort(np.concatenate([4 * pixels + number for number, pixels in enumerate(sides)]))
    pixel, direction = np.divmod(cracks, 4)
    owner = np.searchsorted(ends, pixel, side="right")
    stride = widths[owner]

    ahead = pixel + _STEP_X[direction] + stride * _STEP_Y[direction]
    before = (direction - 1) % 4
    beyond = ahead + _STEP_X[before] + stride * _STEP_Y[before]
    turns_left = inside[beyond]
    straight = inside[ahead] & ~turns_left
    following = np.where(straight, 4 * ahead + direction, 4 * pixel + (direction + 1) % 4)
    following = np.where(turns_left, 4 * beyond + before, following)
    touching = set(owner[turns_left & ~inside[ahead]].tolist())

    first_pixels = np.concatenate(([0], ends[:-1])) if len(ends) else ends
    row, column = np.divmod(pixel - first_pixels[owner], stride)
    offsets = np.array(origins, dtype=np.int64).reshape(-1, 2)[owner] - 1
    corners = np.stack((column + _END_X[direction], row + _END_Y[direction]), axis=1) + offsets

    turns = np.flatnonzero(~straight)
    follower = np.searchsorted(
        turns, _next_turn(np.searchsorted(cracks, following), straight)[turns]
    ).tolist()
    corners, owners, sides_of_turns = corners[turns], owner[turns].tolist(), direction[turns].tolist()
    found = [BoundaryRings(touch_at_corners=number in touching) for number in range(len(masks))]
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
        (rings.exteriors if sides_of_turns[start] == 0 else rings.holes).append(corners[ring])
    return found


def _next_turn(following: np.ndarray, straight: np.ndarray) -> np.ndarray:
    """Return the first crack behind each one at whose end the boundary turns, by doubling the steps."""
    while straight[following].any():
        following = np.where(straight[following], following[following], following)
    return following
