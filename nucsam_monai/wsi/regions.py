"""Segment a rectangle of a slide, or an image too large for one piece, without writing results to the disk."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import shapely
from tqdm import tqdm

from nucsam_monai.utils.image_source import Region
from nucsam_monai.utils.nucleus import Nucleus
from nucsam_monai.utils.prediction import NUCLEUS_DTYPE, NucleiPrediction, prediction_from_instances
from nucsam_monai.wsi.grid import Lattice, Shard, WorkingGrid, cut_shards, working_grid
from nucsam_monai.wsi.journal import Journal
from nucsam_monai.wsi.labels import painted
from nucsam_monai.wsi.merge import merged_shards
from nucsam_monai.wsi.nuclei_table import boxes_of
from nucsam_monai.wsi.readers import ImageReader, SlideReader
from nucsam_monai.wsi.run import (
    Method,
    ShardDone,
    SlideOptions,
    build_segmenter,
    cell_statistics,
    segment_shards,
)
from nucsam_monai.wsi.shards import ShardTask

logger = logging.getLogger(__name__)

Statistics = tuple[float, float] | None
"""Mean and standard deviation of an image over all colours, for methods that normalise by them."""


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
    cells = _cells_of(grid, lattice, edges / grid.scale)
    task = ShardTask(reader, grid, lattice, cells, shapely.box(*edges))
    statistics = cell_statistics(reader, grid, lattice, cells) if method.own_statistics else None
    shards = cut_shards(cells, max(1, round(shard_px / lattice.stride_px)))
    with segmented(task, shards, method, statistics) as journal:
        for table in merged_shards(journal, len(shards)):
            for nucleus in _nuclei_of(table, downsample, region):
                inside = nucleus.cut_off(region.width, region.height)
                if inside.mask.any():
                    yield inside


def nuclei_of_image(
    pixels: np.ndarray, method: Method, scale_of: Callable[[Statistics], float], largest_part_px: int
) -> NucleiPrediction:
    """Segment an image part by part.

    The nuclei are those of a slide without a mask and, if the scale is 1, those of the image segmented in one piece.
    Memory holds the image, its label map and a few parts.

    Args:
        pixels: ``(H, W, 3)`` uint8 RGB.
        method: network that segments the parts.
        scale_of: function that returns the factor by which the image is resized for the network.
        largest_part_px: approximate number of pixels of the largest part; a part has at least a few tiles.

    Raises:
        SlideError: a part cannot be segmented.
    """
    options = SlideOptions()
    reader = ImageReader(Path("image"), pixels, options.model_mpp)
    grid = working_grid(reader, options.model_mpp, options.model_mpp)
    statistics = None
    if method.own_statistics:
        lattice = Lattice.of(method.tile_px, method.overlap_px, 0)
        mean, std = cell_statistics(reader, grid, lattice, _cells_of(grid, lattice))
        statistics = (mean, std)
    mpp = options.model_mpp * scale_of(statistics)
    grid = working_grid(reader, mpp, options.model_mpp, options.mpp_tolerance)
    lattice = Lattice.of(method.tile_px, method.overlap_px, options.max_nucleus_um / grid.mpp)
    task = ShardTask(reader, grid, lattice, _cells_of(grid, lattice))
    side_px = min(math.isqrt(largest_part_px) - lattice.overlap_px, options.shard_px)
    shards = cut_shards(task.cells, max(1, side_px // lattice.stride_px - 2 * lattice.halo))
    height, width = pixels.shape[:2]
    logger.info("%d x %d px: segmented in %d parts.", width, height, len(shards))
    with (
        tqdm(total=len(shards), desc="parts", disable=None) as bar,
        segmented(task, shards, method, statistics, lambda _mm2, _seconds: bar.update()) as journal,
    ):
        instances = np.zeros((height, width), dtype=np.int32)
        rows = [_paint(table, instances) for table in merged_shards(journal, len(shards))]
        class_names = tuple(journal.facts(0)["class_names"])
    return NucleiPrediction(instances, np.concatenate(rows), None, class_names)


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


def _cells_of(grid: WorkingGrid, lattice: Lattice, edges: np.ndarray | None = None) -> np.ndarray:
    """Return which cells of the lattice meet a rectangle (x0, y0, x1, y1) of the grid, ``(rows, columns)`` bool.

    Without a rectangle all of them do.
    """
    s = lattice.stride_px
    cells = np.zeros(lattice.cells_over(grid), dtype=bool)
    x0, y0, x1, y1 = (0, 0, grid.width, grid.height) if edges is None else edges
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


def _paint(table: pa.Table, instances: np.ndarray) -> np.ndarray:
    """Paint nuclei into a label map where it is empty; return their rows of :data:`NUCLEUS_DTYPE`."""
    if not len(table):
        return np.zeros(0, dtype=NUCLEUS_DTYPE)
    for top, left, strip in painted(table, 1.0):
        into = instances[top : top + strip.shape[0], left : left + strip.shape[1]]
        np.copyto(into, strip[: into.shape[0], : into.shape[1]], where=into == 0, casting="unsafe")
    boxes = boxes_of(table)
    x, y = np.floor(boxes[:, :2].min(axis=0)).astype(int).clip(0).tolist()
    right, bottom = np.ceil(boxes[:, 2:].max(axis=0)).astype(int).tolist()
    window, ids = instances[y:bottom, x:right], table["id"].to_numpy()
    # The ids of a table follow one another; those of others lie between them.
    rows = prediction_from_instances(np.where((window >= ids[0]) & (window <= ids[-1]), window, 0)).table
    at = rows["id"] - ids[0]
    rows["class_id"], rows["score"] = table["class_id"].to_numpy()[at], table["score"].to_numpy()[at]
    for axis, start in (("x", x), ("y", y)):
        for field in (f"centroid_{axis}_px", f"box_{axis}_min_px", f"box_{axis}_max_px"):
            rows[field] += start
    return rows
