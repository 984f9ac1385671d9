"""Segment one shard: read its region, run the network, and keep the nuclei that it decides."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import shapely

from nucsam_monai.utils.prediction import NucleiPrediction
from nucsam_monai.wsi.grid import Lattice, Read, Rectangle, Shard, WorkingGrid, read_grid
from nucsam_monai.wsi.nuclei_table import Measured, measure, nuclei_rows
from nucsam_monai.wsi.readers import SlideReader

SHARD_COLUMNS = ("own", "crossing")
"""What a shard's file has besides the columns of the result, for the merge."""


class RegionSegmenter(Protocol):
    """Declare a segmenter of regions; network and post-processing are separate so that both run at the same time."""

    def infer(self, pixels: np.ndarray) -> Any:
        """Run the network on ``(H, W, 3)`` uint8; return what :meth:`nuclei` takes."""

    def nuclei(self, maps: Any) -> NucleiPrediction:
        """Return the nuclei; safe to call in another thread."""


@dataclass
class ShardTask:
    """Hold everything that the shards of a slide share.

    Attributes:
        reader: open slide.
        grid: working grid of the slide.
        lattice: lattice of the network's tiles on the grid.
        cells: ``(rows, columns)`` bool, the cells whose nuclei are kept.
        region: geometry in pixels of level 0 that the user restricts the slide to; None for all of it.
        unwritten: shards that may still be on their way to the disk when the network begins the next one.
    """

    reader: SlideReader
    grid: WorkingGrid
    lattice: Lattice
    cells: np.ndarray
    region: shapely.Geometry | None = None
    unwritten: int = 0

    def mm2(self, shard: Shard) -> float:
        """Return the area of a shard's core."""
        return shard.columns * shard.rows * (self.lattice.stride_px * self.grid.mpp / 1000) ** 2

    def seen_by(self, shard: Shard) -> Rectangle:
        """Return what a shard reads: its tiles, of which those beyond the slide's border are moved inside.

        So they lie in an image that is segmented at once, where the last tile ends with the image.
        """
        x0, y0, x1, y1 = shard.region(self.lattice)
        left, right = self._row_of_tiles(x0, x1, self.grid.width)
        top, bottom = self._row_of_tiles(y0, y1, self.grid.height)
        return Rectangle(left, top, right, bottom)

    def _row_of_tiles(self, start: int, end: int, size: int) -> tuple[int, int]:
        """Return start and end of tiles along one side; one that does not fit into the slide ends with it."""
        last = max(size - self.lattice.tile_px, 0)
        if end - self.lattice.overlap_px > last:  # else no pixel of the evidence is in the last tile
            start, end = min(start, last // self.lattice.stride_px * self.lattice.stride_px), size
        return max(start, 0), end

    def evidence(self, shard: Shard) -> Rectangle:
        """Return the part of what a shard reads in which every pixel has all the tiles that cover it."""
        x0, y0, x1, y1 = self.seen_by(shard)
        overlap, (width, height) = self.lattice.overlap_px, (self.grid.width, self.grid.height)
        return Rectangle(
            x0 and x0 + overlap,
            y0 and y0 + overlap,
            x1 if x1 == width else x1 - overlap,
            y1 if y1 == height else y1 - overlap,
        )

    def read(self, shard: Shard) -> Read:
        """Read the pixels of a shard."""
        x0, y0, x1, y1 = self.seen_by(shard)
        return read_grid(self.reader, self.grid, x0, y0, x1 - x0, y1 - y0)

    def decide(self, shard: Shard, pixels: np.ndarray, found: NucleiPrediction) -> pa.Table:
        """Return the nuclei that a shard reports, ordered by row and column of their centroid.

        A nucleus whose exact centroid lies in the core is the shard's own. Others that cover a pixel of the core are
        reported as well, as spare ones: the merge takes them where the shard that should own them sees none there.
        """
        region, core = self.seen_by(shard), shard.core(self.lattice)
        measured = measure(found.instances, found.table["id"], pixels, region.x0, region.y0)
        own = _centroid_inside(measured, core)
        box = _boxes(found.table, region)
        touches = (box.x1 > core.x0) & (box.x0 < core.x1) & (box.y1 > core.y0) & (box.y0 < core.y1)
        touches &= own | _covers(found, core, region)
        keep = np.flatnonzero(touches & self._wanted(measured))
        area = np.maximum(measured.area[keep], 1)
        keep = keep[np.lexsort((measured.sum_x[keep] / area, measured.sum_y[keep] / area))]
        table = nuclei_rows(
            NucleiPrediction(found.instances, found.table[keep], None, found.class_names),
            Measured(*(values[keep] for values in measured)),
            origin=(region.x0, region.y0),
            scale=self.grid.scale,
            mpp=self.grid.mpp,
            shard=shard.index,
            cut=~_inside(box, self.evidence(shard))[keep],
        )
        table = table.append_column("own", pa.array(own[keep]))
        return table.append_column("crossing", pa.array(~_inside(box, core)[keep]))

    def _wanted(self, measured: Measured) -> np.ndarray:
        """Return which centroids lie in an active cell and in the user's region."""
        step = np.maximum(measured.area, 1) * self.lattice.stride_px
        row, column = measured.sum_y // step, measured.sum_x // step
        rows, columns = self.cells.shape
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        wanted = inside & self.cells[row.clip(0, rows - 1), column.clip(0, columns - 1)]
        if self.region is not None:
            area = np.maximum(measured.area, 1)
            x, y = ((total / area + 0.5) * self.grid.scale for total in (measured.sum_x, measured.sum_y))
            wanted &= shapely.contains_xy(self.region, x, y)
        return wanted


class Stages:
    """Measure wall-clock and processor seconds of the stages of a shard.

    Attributes:
        wall_s: seconds by stage.
        cpu_s: processor seconds by stage, of the thread that runs it.
    """

    def __init__(self) -> None:
        self.wall_s: dict[str, float] = {}
        self.cpu_s: dict[str, float] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Time what is done within."""
        wall, cpu = time.perf_counter(), time.thread_time()
        yield
        self.wall_s[stage] = time.perf_counter() - wall
        self.cpu_s[stage] = time.thread_time() - cpu


def finish(
    task: ShardTask, segmenter: RegionSegmenter, shard: Shard, read: Read, maps: Any, stages: Stages
) -> tuple[pa.Table, dict[str, Any]]:
    """Turn the network's maps into the nuclei that a shard reports; return them and what to note about it."""
    with stages.time("nuclei"):
        found = segmenter.nuclei(maps)
        table = task.decide(shard, read.pixels, found)
    facts = {
        "nuclei": int(np.count_nonzero(table["own"])),
        "class_names": found.class_names,
        "unreadable": read.unreadable,
        "mm2": task.mm2(shard),
        "seconds": stages.wall_s,
        "cpu_seconds": stages.cpu_s,
    }
    return table, facts


def _centroid_inside(measured: Measured, core: Rectangle) -> np.ndarray:
    """Return whose centroid lies in a half-open rectangle, in whole numbers: there is no rounding and no tie."""
    x, y, area = measured.sum_x, measured.sum_y, measured.area
    in_columns = (x >= core.x0 * area) & (x < core.x1 * area)
    return in_columns & (y >= core.y0 * area) & (y < core.y1 * area)


def _covers(found: NucleiPrediction, core: Rectangle, region: Rectangle) -> np.ndarray:
    """Return which nuclei have a pixel in the core."""
    inner = found.instances[
        core.y0 - region.y0 : core.y1 - region.y0, core.x0 - region.x0 : core.x1 - region.x0
    ]
    present = np.zeros(int(found.instances.max(initial=0)) + 1, dtype=bool)
    present[inner] = True
    return present[found.table["id"]]


def _boxes(table: np.ndarray, region: Rectangle) -> Rectangle:
    """Return the boxes of nuclei on the grid, as a rectangle of arrays."""
    x = [table[f"box_x_{end}_px"].astype(np.int64) + region.x0 for end in ("min", "max")]
    y = [table[f"box_y_{end}_px"].astype(np.int64) + region.y0 for end in ("min", "max")]
    return Rectangle(x[0], y[0], x[1], y[1])  # type: ignore[arg-type]


def _inside(box: Rectangle, rectangle: Rectangle) -> np.ndarray:
    x0, y0, x1, y1 = rectangle
    return np.asarray((box.x0 >= x0) & (box.y0 >= y0) & (box.x1 <= x1) & (box.y1 <= y1))
