"""Colours of outlines: seen on white, on black and on the pinks and purples of H&E."""

import numpy as np

PALETTE = np.array(
    [
        (0, 190, 60),  # green
        (0, 150, 255),  # blue
        (255, 130, 0),  # orange
        (0, 190, 190),  # cyan
        (200, 170, 0),  # dark yellow
        (255, 50, 50),  # red
        (130, 170, 60),  # olive
        (110, 130, 255),  # periwinkle
    ],
    dtype=np.uint8,
)
"""``(n, 3)`` RGB; medium lightness, because outlines have to stand out from bright and dark pixels alike."""


def colours_of(indices: np.ndarray) -> np.ndarray:
    """Return an ``(n, 3)`` uint8 RGB colour for each of ``(n,)`` integers; the palette repeats.

    Example:
        >>> colours_of(np.array([0, 8])).tolist()
        [[0, 190, 60], [0, 190, 60]]
    """
    return PALETTE[np.asarray(indices) % len(PALETTE)]
