"""Connected components by flood fill, pixel by pixel."""

import numpy as np


def flood_fill(foreground: np.ndarray) -> list[set[tuple[int, int]]]:
    """Return the 8-connected components of a mask as sets of (y, x)."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(foreground), strict=True)}
    components = []
    while left:
        border = [left.pop()]
        component = set(border)
        while border:
            y, x = border.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            component |= near
            border.extend(near)
        components.append(component)
    return components
