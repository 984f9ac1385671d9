"""Where the tiles of an image lie, and which prompts each of them needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nucsam_monai.utils.errors import ConfigurationError


def tile_origins(side_px: int, tile_px: int, overlap_px: int) -> NDArray[np.int64]:
    """Return the first pixel of each tile along one side of an image.

    The last tile ends with the image, so that it overlaps more than the others. A side that fits into one tile
    has one.

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
    """Overlapping square tiles that cover an image, numbered from 0 on, row by row.

    Attributes:
        image_size: height and width in pixels.
        tile_px: side of a tile.
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
        """Height and width of the image's part in a tile; less than a tile where the image is smaller."""
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


@dataclass(frozen=True)
class EncodedTiles:
    """The embeddings of B tiles.

    Attributes:
        tiles: ``(B,)`` int64, rising.
        embeddings: one of all tiles for each view.
    """

    tiles: NDArray[np.int64]
    embeddings: list[Any]


def plan_tiles(image_size: Sequence[int], tile_px: int, overlap_px: int) -> Tiling:
    """Cover an image with tiles (PromptNucSeg, inference by sliding windows of 256 px that overlap by 64 px).

    Args:
        image_size: height and width in pixels.
        tile_px: side of a tile.
        overlap_px: pixels that neighbours have in common, at least.

    Raises:
        ConfigurationError: as in :func:`tile_origins`.
    """
    height, width = image_size
    rows = tile_origins(height, tile_px, overlap_px)
    return Tiling((height, width), tile_px, rows, tile_origins(width, tile_px, overlap_px))
