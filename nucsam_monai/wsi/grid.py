"""Define the grid on which a slide is segmented: its pixels, its lattice of tiles and its shards."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from nucsam_monai.wsi.readers import SlideError, SlideReader

BLOCK_PX = 512
_MARGIN_PX = 8
"""Source pixels read around a block, so that its resampling sees what lies beyond its border."""

_UNREADABLE_PX, _UNREADABLE_GREY = 256, 128


@dataclass(frozen=True)
class WorkingGrid:
    """Describe the pixel grid that the network sees; its origin is that of level 0.

    Attributes:
        level: level of the slide that is read.
        mpp: micrometres per pixel of the grid.
        scale: side in pixels of level 0 that one pixel of the grid spans.
        width: in pixels of the grid.
        height: in pixels of the grid.
        resampled: whether blocks are resampled, or pixels of the level taken as they are.
    """

    level: int
    mpp: float
    scale: float
    width: int
    height: int
    resampled: bool


class Read(NamedTuple):
    """Hold pixels ``(height, width, 3)`` uint8 of the grid, and the unreadable blocks (column, row) in them."""

    pixels: np.ndarray
    unreadable: list[tuple[int, int]]


def working_grid(reader: SlideReader, mpp: float, model_mpp: float, tolerance: float = 0.05) -> WorkingGrid:
    """Choose the level of a slide that a network trained at ``model_mpp`` sees.

    A level within the tolerance is read as it is; else the next finer one is resampled. A slide that is coarser than
    the network's pixels is enlarged.
    """
    for index, level in enumerate(reader.levels):
        own = mpp * level.downsample
        if abs(own / model_mpp - 1) <= tolerance:
            return WorkingGrid(index, own, level.downsample, level.width, level.height, False)
    finer = [i for i, level in enumerate(reader.levels) if mpp * level.downsample <= model_mpp]
    index = max(finer, default=0)
    scale = model_mpp / mpp
    width, height = (math.ceil(side / scale) for side in reader.levels[0][:2])
    return WorkingGrid(index, model_mpp, scale, width, height, True)


def read_grid(reader: SlideReader, grid: WorkingGrid, x: int, y: int, width: int, height: int) -> Read:
    """Read a rectangle of the grid, which may reach beyond the slide: there it is white.

    The pixels come from blocks of :data:`BLOCK_PX` that are fixed on the grid and always made by the same call, so
    they do not depend on the rectangle. A block that cannot be decoded is white.
    """
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    unreadable = []
    for row in range(max(y, 0) // BLOCK_PX, math.ceil(min(y + height, grid.height) / BLOCK_PX)):
        for column in range(max(x, 0) // BLOCK_PX, math.ceil(min(x + width, grid.width) / BLOCK_PX)):
            try:
                block = _block(reader, grid, column, row)
            except SlideError:
                unreadable.append((column, row))
                continue
            left, top = column * BLOCK_PX - x, row * BLOCK_PX - y
            into = pixels[max(top, 0) : top + BLOCK_PX, max(left, 0) : left + BLOCK_PX]
            first_row, first_column = max(-top, 0), max(-left, 0)
            into[:] = block[
                first_row : first_row + into.shape[0], first_column : first_column + into.shape[1]
            ]
    return Read(pixels, unreadable)


def _block(reader: SlideReader, grid: WorkingGrid, column: int, row: int) -> np.ndarray:
    """Return block (column, row) of the grid, ``(512, 512, 3)`` uint8."""
    if not grid.resampled:
        return reader.read(grid.level, column * BLOCK_PX, row * BLOCK_PX, BLOCK_PX, BLOCK_PX)
    factor = grid.scale / reader.levels[grid.level].downsample  # pixels of the level per pixel of the grid
    margin = math.ceil(_MARGIN_PX * max(1.0, factor))
    x0, y0 = (math.floor(index * BLOCK_PX * factor) - margin for index in (column, row))
    side = math.ceil(BLOCK_PX * factor) + 2 * margin + 1
    source = Image.fromarray(reader.read(grid.level, x0, y0, side, side))
    left, top = (index * BLOCK_PX * factor - start for index, start in ((column, x0), (row, y0)))
    box = (left, top, left + BLOCK_PX * factor, top + BLOCK_PX * factor)
    return np.asarray(source.resize((BLOCK_PX, BLOCK_PX), Image.Resampling.BICUBIC, box=box))


def thumbnail(reader: SlideReader, mpp: float, target_mpp: float = 8.0) -> np.ndarray:
    """Return the slide at about ``target_mpp``, ``(h, w, 3)`` uint8, read in strips from the next finer level."""
    factor = target_mpp / mpp
    level = max((i for i, one in enumerate(reader.levels) if one.downsample <= factor), default=0)
    size = reader.levels[level]
    step = factor / size.downsample
    width, height = max(1, math.ceil(size.width / step)), max(1, math.ceil(size.height / step))
    result = np.full((height, width, 3), 255, dtype=np.uint8)
    side = max(1, math.floor(2048 / step))  # pixels of the thumbnail that are made together
    for top in range(0, height, side):
        for left in range(0, width, side):
            columns, rows = min(side, width - left), min(side, height - top)
            x, y = math.floor(left * step), math.floor(top * step)
            read = (math.ceil((left + columns) * step) - x, math.ceil((top + rows) * step) - y)
            source = Image.fromarray(_readable_part(reader, level, x, y, *read))
            box = (left * step - x, top * step - y, (left + columns) * step - x, (top + rows) * step - y)
            small = source.resize((columns, rows), Image.Resampling.BOX, box=box)
            result[top : top + rows, left : left + columns] = np.asarray(small)
    return result


def _readable_part(reader: SlideReader, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
    """Return a rectangle of a level; pixels that cannot be decoded are grey, so that they do not count as glass."""
    try:
        return reader.read(level, x, y, width, height)
    except SlideError:
        if max(width, height) <= _UNREADABLE_PX:
            return np.full((height, width, 3), _UNREADABLE_GREY, dtype=np.uint8)
    if width >= height:
        half = width // 2
        parts = [(x, y, half, height), (x + half, y, width - half, height)]
        return np.concatenate([_readable_part(reader, level, *part) for part in parts], axis=1)
    half = height // 2
    parts = [(x, y, width, half), (x, y + half, width, height - half)]
    return np.concatenate([_readable_part(reader, level, *part) for part in parts], axis=0)


@dataclass(frozen=True)
class Lattice:
    """Place tiles (column, row) at multiples of the stride, over the whole slide and beyond its border.

    Attributes:
        tile_px: side length of a tile.
        stride_px: distance of two tiles, which is also the side of a cell.
        halo: number of tiles on each side of a shard's core that are segmented in addition to the core.
    """

    tile_px: int
    stride_px: int
    halo: int

    @classmethod
    def of(cls, tile_px: int, overlap_px: int, largest_px: float) -> "Lattice":
        """Return the lattice whose shards see nuclei of ``largest_px`` at the border of their core completely."""
        stride = tile_px - overlap_px
        return cls(tile_px, stride, math.ceil((largest_px + overlap_px) / stride))

    def cells_over(self, grid: WorkingGrid) -> tuple[int, int]:
        """Return how many rows and columns of cells cover a slide."""
        return math.ceil(grid.height / self.stride_px), math.ceil(grid.width / self.stride_px)

    @property
    def overlap_px(self) -> int:
        """Pixels that adjacent tiles have in common."""
        return self.tile_px - self.stride_px


class Rectangle(NamedTuple):
    """Hold a half-open rectangle in pixels of the grid."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True)
class Shard:
    """Hold a rectangle of cells that is segmented and written in one step.

    Attributes:
        index: position among all shards.
        column: column of its first cell.
        row: row of its first cell.
        columns: number of cells in a row.
        rows: number of cells in a column.
    """

    index: int
    column: int
    row: int
    columns: int
    rows: int

    def core(self, lattice: Lattice) -> Rectangle:
        """Return what the shard decides: the nuclei whose centroid lies there are its own."""
        s = lattice.stride_px
        right, bottom = self.column + self.columns, self.row + self.rows
        return Rectangle(self.column * s, self.row * s, right * s, bottom * s)

    def region(self, lattice: Lattice) -> Rectangle:
        """Return all tiles of the lattice that meet the core enlarged by the halo; some may lie beyond the slide."""
        core, halo = self.core(lattice), lattice.halo * lattice.stride_px
        end = halo + lattice.overlap_px
        return Rectangle(core.x0 - halo, core.y0 - halo, core.x1 + end, core.y1 + end)

    def tiles(self, lattice: Lattice) -> int:
        """Return the number of tiles in the region."""
        return (self.columns + 2 * lattice.halo) * (self.rows + 2 * lattice.halo)


def cut_shards(cells: np.ndarray, side: int) -> list[Shard]:
    """Cut the active cells into blocks of at most ``side`` cells a side, each trimmed to what is active in it.

    Args:
        cells: ``(rows, columns)`` bool.
        side: side length of a block in cells.

    Returns:
        The shards in Z-order, so that neighbours are read soon after one another.
    """
    blocks = [
        (row, column)
        for row in range(0, cells.shape[0], side)
        for column in range(0, cells.shape[1], side)
        if cells[row : row + side, column : column + side].any()
    ]
    blocks.sort(key=lambda block: _morton(block[0] // side, block[1] // side))
    shards = []
    for index, (row, column) in enumerate(blocks):
        active = cells[row : row + side, column : column + side]
        rows, columns = (np.flatnonzero(active.any(axis=axis)) for axis in (1, 0))
        extent = (int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1)
        shards.append(Shard(index, column + int(columns[0]), row + int(rows[0]), *extent))
    return shards


def active_cells(mask: np.ndarray, mask_mpp: float, grid: WorkingGrid, lattice: Lattice) -> np.ndarray:
    """Return which cells of the lattice meet the tissue mask, ``(rows, columns)`` bool.

    Args:
        mask: ``(h, w)`` bool, of the whole slide.
        mask_mpp: micrometres per pixel of the mask.
        grid: working grid of the slide.
        lattice: lattice of tiles on the grid.
    """
    rows, columns = lattice.cells_over(grid)
    step = lattice.stride_px * grid.mpp / mask_mpp
    cells = np.zeros((rows, columns), dtype=bool)
    for row, (top, bottom) in enumerate(_spans(rows, step, mask.shape[0])):
        filled = np.asarray(mask[top:bottom].any(axis=0))
        cells[row] = [filled[left:right].any() for left, right in _spans(columns, step, mask.shape[1])]
    return cells


def spread(items: Sequence[tuple[int, int]], count: int) -> Iterator[tuple[int, int]]:
    """Yield ``count`` items evenly spread over a sequence, or all of it."""
    for index in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)):
        yield items[index]


def _spans(count: int, step: float, end: int) -> list[tuple[int, int]]:
    starts = [min(math.floor(n * step), end - 1) for n in range(count)]
    return [(a, max(a + 1, min(end, math.ceil((n + 1) * step)))) for n, a in enumerate(starts)]


def _morton(row: int, column: int) -> int:
    return sum(((row >> bit & 1) << (2 * bit + 1)) | ((column >> bit & 1) << (2 * bit)) for bit in range(20))
