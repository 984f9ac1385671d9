"""Segment a rectangle of a slide as in the whole slide, without writing results to the disk."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import shapely

from nucsam_monai.utils.image_source import Region
from nucsam_monai.utils.nucleus import Nucleus
from nucsam_monai.wsi.grid import Lattice, Rectangle, Shard, WorkingGrid, cut_shards, working_grid
from nucsam_monai.wsi.journal import Journal
from nucsam_monai.wsi.merge import merged_shards
from nucsam_monai.wsi.nuclei_table import boxes_of
from nucsam_monai.wsi.readers import SlideReader
from nucsam_monai.wsi.run import (
    Method,
    ShardDone,
    SlideOptions,
    build_segmenter,
    cell_statistics,
    segment_shards,
)
from nucsam_monai.wsi.shards import ShardTask


def nuclei_of_region(
    reader: SlideReader, level: int, region: Region, method: Method, *, shard_px: int, largest_px: int
) -> Iterator[Nucleus]:
    """Yield the nuclei whose centroid lies in a region, in pixels of it and cut off at its border.

    The slide is read at the resolution that the network was trained at where its micrometres per pixel are known, else
    at the level's own. At most a shard's pixels are in memory.

    Args:
        reader: open slide or image.
        level: level of the pixel coordinates of the region and of the result.
        region: inside of the level.
        method: segments it.
        shard_px: side of a shard on the grid, about.
        largest_px: nuclei up to this size are seen whole.

    Raises:
        SlideError: a part of the region cannot be segmented.
    """
    grid, downsample = _grid_of(reader, level), reader.levels[level].downsample
    lattice = Lattice.of(method.tile_px, method.overlap_px, largest_px)
    edges = np.array([region.x, region.y, region.x + region.width, region.y + region.height]) * downsample
    cells = _cells_of(Rectangle(*(edges / grid.scale)), grid, lattice)
    task = ShardTask(reader, grid, lattice, cells, shapely.box(*edges))
    statistics = cell_statistics(reader, grid, lattice, cells) if method.own_statistics else None
    shards = cut_shards(cells, max(1, round(shard_px / lattice.stride_px)))
    with segmented(task, shards, method, statistics) as journal:
        for table in merged_shards(journal, len(shards)):
            for nucleus in _nuclei_of(table, downsample, region):
                inside = nucleus.cut_off(region.width, region.height)
                if inside.mask.any():
                    yield inside


@contextmanager
def segmented(
    task: ShardTask,
    shards: Sequence[Shard],
    method: Method,
    statistics: Sequence[float] | None,
    done: ShardDone | None = None,
) -> Iterator[Journal]:
    """Segment shards and give their journal, which goes with the block.

    Args:
        task: task that the shards share.
        shards: all of the image or slide.
        method: segments them.
        statistics: mean and standard deviation that regions are normalised by; None for the method's own constants.
        done: called for every shard, see :func:`~nucsam_monai.wsi.run.segment_shards`.

    Raises:
        SlideError: a shard cannot be segmented.
    """
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        nothing = np.zeros((1, 1, 3), dtype=np.uint8)
        journal.write_plan({"statistics": statistics}, task.cells, task.cells, nothing)
        segment_shards(journal, task, build_segmenter(journal, method), shards, done)
        yield journal


def _grid_of(reader: SlideReader, level: int) -> WorkingGrid:
    own, options = reader.levels[level], SlideOptions()
    if reader.mpp is not None:
        return working_grid(reader, reader.mpp.value, options.model_mpp, options.mpp_tolerance)
    return WorkingGrid(level, options.model_mpp, own.downsample, own.width, own.height, False)


def _cells_of(rectangle: Rectangle, grid: WorkingGrid, lattice: Lattice) -> np.ndarray:
    """Return which cells of the lattice meet a rectangle of the grid, ``(rows, columns)`` bool."""
    s = lattice.stride_px
    cells = np.zeros((math.ceil(grid.height / s), math.ceil(grid.width / s)), dtype=bool)
    x0, y0, x1, y1 = rectangle
    cells[math.floor(y0 / s) : math.ceil(y1 / s), math.floor(x0 / s) : math.ceil(x1 / s)] = True
    return cells


def _nuclei_of(table: pa.Table, downsample: float, region: Region) -> Iterator[Nucleus]:
    """Yield the nuclei of a table in pixels of a region: those whose middle lies in the outline."""
    outlines = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    shapely.prepare(outlines)
    boxes = boxes_of(table) / downsample - np.tile([region.x, region.y], 2)
    lows, highs = np.floor(boxes[:, :2]).astype(int).tolist(), np.ceil(boxes[:, 2:]).astype(int).tolist()
    facts = zip(outlines, lows, highs, table["class_id"].to_pylist(), table["score"].to_pylist(), strict=True)
    for outline, (x0, y0), (x1, y1), class_id, score in facts:
        columns, rows = np.meshgrid(np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5)
        places = (columns + region.x) * downsample, (rows + region.y) * downsample
        yield Nucleus(x0, y0, shapely.contains_xy(outline, *places), class_id, score).trimmed()
