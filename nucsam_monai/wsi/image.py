"""Segment an image in parts, like a slide, if it is too large for one piece, and return its nuclei."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from nucsam_monai.utils.prediction import NUCLEUS_DTYPE, NucleiPrediction, prediction_from_instances
from nucsam_monai.wsi.grid import Lattice, WorkingGrid, cut_shards, working_grid
from nucsam_monai.wsi.labels import painted
from nucsam_monai.wsi.merge import merged_shards
from nucsam_monai.wsi.nuclei_table import boxes_of
from nucsam_monai.wsi.readers import ImageReader
from nucsam_monai.wsi.regions import segmented
from nucsam_monai.wsi.run import Method, SlideOptions, cell_statistics
from nucsam_monai.wsi.shards import ShardTask

logger = logging.getLogger(__name__)

Statistics = tuple[float, float] | None
"""Mean and standard deviation of an image over all colours, for methods that normalise by them."""


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
        mean, std = cell_statistics(reader, grid, lattice, _all_cells(grid, lattice))
        statistics = (mean, std)
    mpp = options.model_mpp * scale_of(statistics)
    grid = working_grid(reader, mpp, options.model_mpp, options.mpp_tolerance)
    lattice = Lattice.of(method.tile_px, method.overlap_px, options.max_nucleus_um / grid.mpp)
    task = ShardTask(reader, grid, lattice, _all_cells(grid, lattice))
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


def _all_cells(grid: WorkingGrid, lattice: Lattice) -> np.ndarray:
    sides = (grid.height, grid.width)
    return np.ones([math.ceil(side / lattice.stride_px) for side in sides], dtype=bool)


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
