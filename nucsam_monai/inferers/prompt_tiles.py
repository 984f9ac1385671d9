"""Which prompts each tile needs."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.inferers.tiling import Tiling


class Visits(NamedTuple):
    """The prompts of every tile: m pairs of a tile and a prompt in it, sorted by tile and then by prompt.

    Attributes:
        tiles: ``(m,)`` int64.
        prompts: ``(m,)`` int64.
    """

    tiles: NDArray[np.int64]
    prompts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tiles)

    def select(self, keep: NDArray[np.bool_]) -> "Visits":
        """Return the visits for which ``keep`` ``(m,)`` is true."""
        return Visits(self.tiles[keep], self.prompts[keep])

    def of_tiles(self, tiles: NDArray[np.int64]) -> "Visits":
        """Return the visits of rising ``tiles`` ``(k,)``."""
        first, end = np.searchsorted(self.tiles, tiles), np.searchsorted(self.tiles, tiles + 1)
        rows = [np.arange(*ends) for ends in zip(first.tolist(), end.tolist(), strict=True)]
        chosen = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
        return Visits(self.tiles[chosen], self.prompts[chosen])


def visit_tiles(pixels: NDArray[np.int64], tiling: Tiling) -> Visits:
    """List the prompts of every tile; a prompt where tiles overlap is in several.

    Args:
        pixels: ``(n, 2)`` column and row of every prompt, inside of the image.
        tiling: the tiles.
    """
    in_column, in_row = (
        (pixels[:, axis, None] >= origins) & (pixels[:, axis, None] < origins + tiling.tile_px)
        for axis, origins in enumerate((tiling.columns, tiling.rows))
    )
    tiles, prompts = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for row in range(len(tiling.rows)):
        in_this_row = np.flatnonzero(in_row[:, row])
        columns, positions = np.nonzero(in_column[in_this_row].T)
        tiles.append(row * len(tiling.columns) + columns)
        prompts.append(in_this_row[positions])
    return Visits(np.concatenate(tiles), np.concatenate(prompts))


def best_visits(visits: Visits, pixels: NDArray[np.int64], tiling: Tiling) -> NDArray[np.bool_]:
    """Mark for every prompt the one tile in which it is farthest from the tile's edges.

    An edge that is the image's edge too does not count, since no other tile sees more beyond it. Of equal
    tiles the first is taken.

    Args:
        visits: the m visits of :func:`visit_tiles`.
        pixels: ``(n, 2)`` column and row of every prompt.
        tiling: the tiles.

    Returns:
        ``(m,)`` bool, true once per prompt.
    """
    origins = tiling.origins(visits.tiles)
    before = pixels[visits.prompts] - origins
    after = tiling.tile_px - 1 - before
    image_end = np.array(tiling.image_size[::-1])
    unbounded = np.iinfo(np.int64).max
    before = np.where(origins == 0, unbounded, before)
    after = np.where(origins + tiling.tile_px >= image_end, unbounded, after)
    margin = np.minimum(before, after).min(axis=1)
    # A descending sort of equal margins would reverse the tiles; so their negatives rise.
    order = np.lexsort((visits.tiles, -margin, visits.prompts))
    _, first = np.unique(visits.prompts[order], return_index=True)
    best = np.zeros(len(visits), dtype=np.bool_)
    best[order[first]] = True
    return best
