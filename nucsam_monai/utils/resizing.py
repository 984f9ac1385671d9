"""Resize label maps so that labels stay aligned with their image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUDGE = 1e-6


def resize_labels(labels: NDArray[Any], size: Sequence[int]) -> NDArray[Any]:
    """Resize label maps ``(..., H, W)`` about pixel centres, as images are resized by bilinear interpolation.

    Every pixel takes the label that has the largest share in that interpolation. Where two have the same share, as on
    every other border of an image that is halved, neighbouring pixels take turns. Nothing moves, grows or shrinks:
    ``nearest`` takes the first pixel of a cell instead, up to half a pixel off, and ``nearest-exact`` always the later
    of two at equal distance, a quarter of a pixel off when an image is halved.

    Args:
        labels: ids of any type.
        size: new height and width.

    Example:
        >>> resize_labels(np.array([[1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2]]), (2, 4))
        array([[1, 1, 2, 2],
               [1, 1, 2, 2]])
    """
    if labels.shape[-2:] == tuple(size):
        return labels
    (top, bottom, down), (left, right, across) = map(_between, labels.shape[-2:], size)
    lines = [labels.take(rows, axis=-2) for rows in (top, bottom)]
    corners = [line.take(columns, axis=-1) for line in lines for columns in (left, right)]
    resized = corners[0].copy()
    border = np.nonzero(np.logical_or.reduce([corner != resized for corner in corners[1:]]))
    nudge = np.where((border[-2] + border[-1]) % 2, _NUDGE, -_NUDGE)
    y, x = down[border[-2]] + nudge, across[border[-1]] + nudge
    ids = [corner[border] for corner in corners]
    weights = [(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x]
    shares = [sum(w * (other == own) for other, w in zip(ids, weights, strict=True)) for own in ids]
    resized[border] = np.choose(np.argmax(shares, axis=0), ids)
    return resized


def _between(length: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the two old pixels of a row between which each new one lies, and how far behind the first it does."""
    position = np.clip(((2 * np.arange(new) + 1) * length - new) / (2 * new), 0, length - 1)
    first = position.astype(np.int64)
    return first, np.minimum(first + 1, length - 1), position - first
