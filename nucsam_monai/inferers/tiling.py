"""Cover images with overlapping tiles: where these lie, which prompts each needs, and in which views it is seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nucsam_monai.utils.errors import ConfigurationError


def tile_origins(side_px: int, tile_px: int, overlap_px: int) -> NDArray[np.int64]:
    """Return the first pixel of each tile along one side of an image.

    The last tile ends with the image, so it overlaps more than the others. A side that fits into one tile has one.

    Raises:
        ConfigurationError: a negative side, or an overlap that is not in 0..tile_px - 1.

    Example:
        >>> tile_origins(600, 256, 64)
        array([  0, 192, 344])
    """
    if side_px < 0 or not 0 <= overlap_px < tile_px:
        raise ConfigurationError(
            f"side_px {side_px}, tile_px {tile_px}, overlap_px {overlap_px}: expected a side of 0 or more and "
            "an overlap from 0 to below the tile's side."
        )
    last = max(0, side_px - tile_px)
    return np.append(np.arange(0, last, tile_px - overlap_px, dtype=np.int64), last)


@dataclass(frozen=True)
class Tiling:
    """Cover an image with overlapping square tiles, numbered from 0, row by row.

    Attributes:
        image_size: height and width in pixels.
        tile_px: side length of a tile.
        rows: first pixel of each row of tiles.
        columns: first pixel of each column of tiles.
    """

    image_size: tuple[int, int]
    tile_px: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def covered_size(self) -> tuple[int, int]:
        """Height and width of the image's part in a tile; less than a tile if the image is smaller."""
        height, width = self.image_size
        return min(height, self.tile_px), min(width, self.tile_px)

    def origins(self, tiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first pixel ``(k, 2)`` as (x, y) of tiles ``(k,)``."""
        rows, columns = np.divmod(tiles, len(self.columns))
        return np.stack([self.columns[columns], self.rows[rows]], axis=1)

    def cut(self, image: Tensor, tiles: NDArray[np.int64]) -> Tensor:
        """Cut tiles ``(k,)`` out of an image ``(1, 3, H, W)``.

        Returns:
            ``(k, 3, S, S)``, filled at the bottom and right with zeros where the image is smaller than a tile:
            after normalisation that is the mean colour, as in SAM's own padding.
        """
        height, width = self.covered_size
        parts = [image[0, :, y : y + height, x : x + width] for x, y in self.origins(tiles).tolist()]
        return F.pad(torch.stack(parts), (0, self.tile_px - width, 0, self.tile_px - height))


def plan_tiles(image_size: Sequence[int], tile_px: int, overlap_px: int) -> Tiling:
    """Cover an image with tiles (PromptNucSeg, inference by sliding windows of 256 px that overlap by 64 px).

    Args:
        image_size: height and width in pixels.
        tile_px: side length of a tile.
        overlap_px: pixels that neighbours have in common, at least.

    Raises:
        ConfigurationError: as for :func:`tile_origins`.
    """
    height, width = image_size
    rows = tile_origins(height, tile_px, overlap_px)
    return Tiling((height, width), tile_px, rows, tile_origins(width, tile_px, overlap_px))


class Visits(NamedTuple):
    """List the prompts of every tile: m pairs of a tile and a prompt in it, sorted by tile and then by prompt.

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
        """Return the visits of ``tiles`` ``(k,)``."""
        return self.select(np.isin(self.tiles, tiles))


def visit_tiles(pixels: NDArray[np.int64], tiling: Tiling) -> Visits:
    """List the prompts of every tile; a prompt where tiles overlap is in several.

    Args:
        pixels: ``(n, 2)`` column and row of every prompt, inside the image.
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

    An edge of the tile that is also an edge of the image does not count, since no other tile sees more beyond it.
    Of equal tiles the first is taken.

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
    # A descending sort of equal margins would reverse the tiles, so their negatives ascend.
    order = np.lexsort((visits.tiles, -margin, visits.prompts))
    _, first = np.unique(visits.prompts[order], return_index=True)
    best = np.zeros(len(visits), dtype=np.bool_)
    best[order[first]] = True
    return best


def tiles_of(points: NDArray[np.float64], tiling: Tiling) -> NDArray[np.int64]:
    """Return for each point ``(n, 2)`` as (x, y) in the image the tile ``(n,)`` of :func:`best_visits`."""
    pixels = np.floor(points + 0.5).astype(np.int64)
    visits = visit_tiles(pixels, tiling)
    best = visits.select(best_visits(visits, pixels, tiling))
    return best.tiles[np.argsort(best.prompts)]


@dataclass(frozen=True)
class View:
    """Mirror a square image and rotate it by quarter turns, for test-time augmentation.

    Both map pixels exactly onto pixels, and points with them: about the image's centre, which is at
    ``(S - 1) / 2`` where pixel centres are at integers.

    Attributes:
        flip: "x" mirrors left and right, "y" top and bottom.
        quarter_turns: counter-clockwise, 0 to 3.
    """

    flip: Literal["", "x", "y"] = ""
    quarter_turns: int = 0

    def of(self, maps: Tensor) -> Tensor:
        """Return the view of maps ``(..., S, S)``."""
        return torch.rot90(self._mirrored(maps), self.quarter_turns, (-2, -1))

    def undo(self, maps: Tensor) -> Tensor:
        """Return the maps ``(..., S, S)`` that ``maps`` are the view of."""
        return self._mirrored(torch.rot90(maps, -self.quarter_turns, (-2, -1)))

    def of_points(self, points: Tensor, side_px: int) -> Tensor:
        """Return where points ``(..., 2)`` as (x, y) of an image of side ``side_px`` are in the view."""
        x, y = points.unbind(-1)
        last = side_px - 1
        if self.flip == "x":
            x = last - x
        elif self.flip == "y":
            y = last - y
        for _ in range(self.quarter_turns):
            x, y = y, last - x
        return torch.stack([x, y], dim=-1)

    def _mirrored(self, maps: Tensor) -> Tensor:
        return maps.flip(-1 if self.flip == "x" else -2) if self.flip else maps


IDENTITY = (View(),)

SIX_VIEWS = (View(), View("x"), View("y"), *(View(quarter_turns=turns) for turns in (1, 2, 3)))
"""The views of PromptNucSeg's test-time augmentation."""

EIGHT_VIEWS = tuple(View(flip, turns) for flip in ("", "x") for turns in range(4))
"""Every way in which a square lies on itself."""


@dataclass(frozen=True)
class EncodedTiles:
    """Hold the embeddings of B tiles.

    Attributes:
        tiles: ``(B,)`` int64, rising.
        embeddings: one of all tiles for each view.
    """

    tiles: NDArray[np.int64]
    embeddings: list[Any]


@dataclass(frozen=True)
class TileEncoder:
    """Encode the tiles of one image.

    Attributes:
        segmenter: the network, with a method ``encode``.
        image: ``(1, 3, H, W)``.
        tiling: the tiles.
        views: test-time views.
    """

    segmenter: Any
    image: Tensor
    tiling: Tiling
    views: Sequence[View] = IDENTITY

    def encode(self, tiles: NDArray[np.int64]) -> EncodedTiles:
        """Encode tiles ``(B,)`` once in every view."""
        batch = self.tiling.cut(self.image, tiles)
        return EncodedTiles(tiles, [self.segmenter.encode(view.of(batch)) for view in self.views])
