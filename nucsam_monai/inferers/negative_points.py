"""Neighbouring nuclei as negative prompts."""

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.inferers.prompt_tiles import Visits


def nearest_others(
    xy: NDArray[np.float64], visits: Visits, everyone: Visits, count: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Find the nearest other points of the same tile (PromptNucSeg, negative prompts).

    A point at the very position of the prompt is no neighbour: as a negative point it would contradict it.

    Args:
        xy: ``(n, 2)`` positions of all prompts in pixels.
        visits: the N visits whose neighbours are looked for.
        everyone: all visits, in which the neighbours are looked for.
        count: K.

    Returns:
        Positions ``(N, K, 2)`` in the pixels of ``xy``, the nearest first, and labels ``(N, K)``: 0 for a
        neighbour, -1 where there are no more; those have the position of the prompt.
    """
    points = np.repeat(xy[visits.prompts][:, None], count, axis=1)
    labels = np.full((len(visits), count), -1, dtype=np.int64)
    for tile in np.unique(visits.tiles):
        rows = np.flatnonzero(visits.tiles == tile)
        others = xy[everyone.of_tiles(np.array([tile])).prompts]
        away = ((points[rows, :1] - others) ** 2).sum(axis=2)
        away[away == 0] = np.inf
        nearest = np.argsort(away, axis=1, kind="stable")[:, :count]
        found = np.isfinite(np.take_along_axis(away, nearest, axis=1))
        which, slot = np.nonzero(found)
        points[rows[which], slot] = others[nearest[which, slot]]
        labels[rows[which], slot] = 0
    return points, labels
