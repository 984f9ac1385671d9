"""Log the expected time of a slide before it starts, and its progress once a minute."""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from nucsam_monai.wsi.grid import Shard, read_grid, spread
from nucsam_monai.wsi.shards import RegionSegmenter, ShardTask

logger = logging.getLogger(__name__)

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} mm2 [{elapsed}<{remaining}]"
_LOG_S = 60.0
_TIMED_TILES = 3
_LONG_S = 12 * 3600


class Progress:
    """Show a bar in mm2, and log speed, remaining time and the network's share once a minute and at the end.

    Args:
        task: task of the slide.
        shards: remaining shards.
        workers: number of workers that segment them at the same time.
        tile_s: expected seconds per tile; None if unknown.
    """

    def __init__(
        self, task: ShardTask, shards: Sequence[Shard], *, workers: int = 1, tile_s: float | None = None
    ) -> None:
        self.name, self.workers = task.reader.path.name, workers
        self.mm2, self.network_s = 0.0, 0.0
        self.total = sum(task.mm2(shard) for shard in shards)
        tiles = sum(shard.tiles(task.lattice) for shard in shards)
        self.expected_s = None if tile_s is None else tile_s * tiles / workers
        logger.log(
            logging.WARNING if (self.expected_s or 0) > _LONG_S else logging.INFO,
            "%s: %.2f mm2 in %d shards, %d tiles of %d px, %s",
            *(self.name, self.total, len(shards), tiles, task.lattice.tile_px),
            "time unknown until the first shard is done"
            if tile_s is None or self.expected_s is None
            else f"about {duration(self.expected_s)} ({tile_s:.3f} s per tile, {workers} at once)",
        )

    def __enter__(self) -> "Progress":
        self._bar = tqdm(total=self.total, desc=self.name, disable=None, bar_format=_BAR)
        self._start = time.perf_counter()
        self._ended = threading.Event()
        threading.Thread(target=self._log, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._bar.close()
        logger.info("%s", self.line())

    def done(self, mm2: float, network_s: float = 0.0) -> None:
        """Count a shard, and the seconds that the network took for it."""
        self.mm2 += mm2
        self.network_s += network_s
        self._bar.update(mm2)

    def line(self) -> str:
        """Return how far the slide is."""
        elapsed = time.perf_counter() - self._start
        left = None if self.expected_s is None else max(self.expected_s - elapsed, 0.0)
        pace = "no shard done yet"
        if self.mm2:
            left = elapsed / self.mm2 * max(self.total - self.mm2, 0.0)
            share = 100 * self.network_s / elapsed / self.workers
            pace = f"{elapsed / self.mm2:.1f} s/mm2, network busy {share:.0f} %"
        words = "unknown time" if left is None else duration(left)
        return f"{self.name}: {self.mm2:.2f} of {self.total:.2f} mm2, {pace}, {words} left"

    def _log(self) -> None:
        while not self._ended.wait(_LOG_S):
            logger.info("%s", self.line())


def seconds_per_tile(task: ShardTask, segmenter: RegionSegmenter) -> float | None:
    """Time three tiles from all over the tissue, after another one to warm up; None if the network fails on them."""
    lattice, times = task.lattice, []
    places = [(int(row), int(column)) for row, column in np.argwhere(task.cells)]
    for row, column in spread(places, _TIMED_TILES + 1):
        corner = (column * lattice.stride_px, row * lattice.stride_px)
        pixels = read_grid(task.reader, task.grid, *corner, lattice.tile_px, lattice.tile_px).pixels
        start = time.perf_counter()
        try:
            maps: Any = segmenter.infer(pixels)
            segmenter.nuclei(maps)
        except Exception:  # noqa: BLE001 - the shard that fails as well will say why
            return None
        times.append(time.perf_counter() - start)
    return float(np.mean(times[1:] or times)) if times else None


def duration(seconds: float) -> str:
    """Return a time as a reader wants it, for example ``3 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
