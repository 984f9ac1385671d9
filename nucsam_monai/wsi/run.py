"""Segment a slide: plan, segment shards, merge. A killed run resumes when it is started again."""

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nucsam_monai.io import write_json
from nucsam_monai.utils.errors import NucSAMError
from nucsam_monai.utils.files import sha256_of_file
from nucsam_monai.utils.machine import reuse_freed_memory
from nucsam_monai.wsi.grid import (
    BLOCK_PX,
    Lattice,
    Read,
    Shard,
    WorkingGrid,
    active_cells,
    cut_shards,
    read_grid,
    spread,
    thumbnail,
    working_grid,
)
from nucsam_monai.wsi.journal import Journal
from nucsam_monai.wsi.merge import merged_shards
from nucsam_monai.wsi.outputs import STREAMED, Summary, check_outputs, write_nuclei, write_pictures
from nucsam_monai.wsi.progress import Progress, seconds_per_tile
from nucsam_monai.wsi.ranks import Ranks
from nucsam_monai.wsi.readers import (
    SlideError,
    SlideReader,
    fingerprint,
    mpp_of_slide,
    open_slide,
    warn_of_other_mpp,
)
from nucsam_monai.wsi.shards import RegionSegmenter, ShardTask, Stages, finish
from nucsam_monai.wsi.tissue import draw_region, given_mask, read_region, tissue_mask

logger = logging.getLogger(__name__)

MASK_MPP = 8.0
MOST_UNREADABLE = 0.01
"""Share of the segmented area that may be unreadable; beyond it the slide has failed."""

ShardDone = Callable[[float, float], object]

_LEAST_THUMBNAIL_PX = 1000
_SAMPLED_CELLS = 48
_READ_AHEAD = 1
_ATTEMPTS = 2
_MOST_ENLARGED = 2  # as from 20x to 40x; beyond it the network sees blurred nuclei only


@dataclass(frozen=True)
class SlideOptions:
    """Configure how a slide is read and which files are written; everything besides the network.

    Attributes:
        mpp: micrometres per pixel at level 0, for files without this information.
        model_mpp: micrometres per pixel that the network was trained at.
        mpp_tolerance: relative difference from ``model_mpp`` up to which a level is read without resampling.
        mask: tissue mask: ``otsu``, ``all``, or the path of a mask image of the whole slide.
        region: GeoJSON file with the region to segment, in pixels of level 0.
        shard_px: approximate side length of a shard in pixels of the working grid.
        max_nucleus_um: nuclei up to this size are segmented whole at the borders of shards.
        outputs: files to write, keys of :data:`~nucsam_monai.wsi.outputs.OUTPUTS`.

    Example:
        >>> SlideOptions(mpp=0.25, mask="all", outputs=("parquet", "labels")).model_mpp
        0.25
    """

    mpp: float | None = None
    model_mpp: float = 0.25
    mpp_tolerance: float = 0.05
    mask: str = "otsu"
    region: str | None = None
    shard_px: int = 4032
    max_nucleus_um: float = 30.0
    outputs: tuple[str, ...] = tuple(STREAMED)

    def __post_init__(self) -> None:
        check_outputs(self.outputs)


@dataclass(frozen=True)
class Method:
    """Describe a network to the plan of a slide.

    Attributes:
        facts: identification of the network: bundle, digests of weights and configuration, options.
        tile_px: side length of its tiles.
        overlap_px: overlap of adjacent tiles in pixels.
        own_statistics: whether it normalises an image by the image's mean and standard deviation; for a slide these are
            computed once, from tissue all over the slide.
        build: function from the mean and standard deviation of the slide, or None, to a segmenter of regions.
        files: files that the facts were taken from: configuration and weights.
        unwritten: number of shards that may be unwritten when the network begins the next one. They are lost if the
            run is killed, so it is 1 only on a GPU, which would otherwise wait for the disk.
    """

    facts: Mapping[str, Any]
    tile_px: int
    overlap_px: int
    own_statistics: bool
    build: Callable[[tuple[float, float] | None], RegionSegmenter] = field(compare=False)
    files: tuple[Path, ...] = ()
    unwritten: int = 0


@dataclass(frozen=True)
class SlideResult:
    """Hold the status of a segmented slide.

    Attributes:
        slide: name of the slide.
        status: ``done``, ``done_empty`` (no nuclei), ``partial`` (some pixels could not be read), ``failed``, or
            ``refused`` (unknown micrometres per pixel).
        nuclei: number of nuclei.
        mm2: segmented area in square millimetres.
        seconds: wall-clock time.
        message: reason if the slide failed or was refused.
        folder: folder with the results.
    """

    slide: str
    status: str
    nuclei: int = 0
    mm2: float = 0.0
    seconds: float = 0.0
    message: str = ""
    folder: str = ""


def segment_slide(
    path: Path | str,
    output_dir: Path | str,
    method: Method,
    options: SlideOptions,
    *,
    overwrite: bool = False,
) -> SlideResult:
    """Segment a slide and write the results to ``<output_dir>/<name of the slide>``.

    A finished slide is skipped, and an interrupted run resumes. If torchrun started several processes, each segments a
    part of the slide.

    Args:
        path: slide, or image of any size.
        output_dir: folder for the results; created if missing.
        method: network, see :func:`nucsam_monai.wsi.bundles.method_of`.
        options: how to read the slide and which files to write.
        overwrite: delete the results of an earlier run.

    Raises:
        SlideError: the slide, or too much of it, cannot be read.
        ConfigurationError: the folder holds results with other options, or another run uses it.
    """
    start = time.perf_counter()
    reuse_freed_memory(blocks_of_all_sizes=True)
    path = Path(path)
    journal = Journal(Path(output_dir) / path.stem)
    ranks = Ranks.of_environment()
    try:
        if ranks.rank:
            ranks.wait(journal.folder, "begun", "ended")
            _segment(path, journal, method, options, ranks)
            ranks.wait(journal.folder, "ended")
        else:
            with journal.locked():
                if overwrite:
                    journal.clear()
                shards = _segment(path, journal, method, options, ranks)
                ranks.wait(
                    journal.folder, until=lambda: journal.is_finished() or not pending(journal, shards)
                )
                if not journal.is_finished():
                    merge_slide(journal)
                ranks.tell(journal.folder, "ended")
    except NucSAMError as error:
        ranks.tell(journal.folder, f"failed{ranks.rank}", str(error))
        raise
    return result_of(journal, time.perf_counter() - start)


def _segment(
    path: Path, journal: Journal, method: Method, options: SlideOptions, ranks: Ranks
) -> list[Shard]:
    """Segment this process' part of a slide; return all its shards."""
    task, shards = prepare(path, journal, method, options)
    ranks.tell(journal.folder, "begun")
    left = [] if journal.is_finished() else pending(journal, shards)
    if mine := ranks.share(left):
        segmenter = build_segmenter(journal, method)
        if ranks.rank:  # the first one speaks for all
            segment_shards(journal, task, segmenter, mine)
        else:
            with Progress(task, mine, tile_s=seconds_per_tile(task, segmenter)) as progress:
                segment_shards(journal, task, segmenter, mine, progress.done)
    return shards


def prepare(
    path: Path, journal: Journal, method: Method, options: SlideOptions
) -> tuple[ShardTask, list[Shard]]:
    """Read the plan in the folder, or make it: grid, tissue, statistics; return what the shards need and the shards."""
    reader = open_slide(path)
    mpp = mpp_of_slide(reader, options.mpp)
    request = {
        "slide": {"name": path.name, "fingerprint": fingerprint(path)},
        "mpp": {"value": mpp.value, "source": mpp.source},
        "method": dict(method.facts),
        "options": request_of(options),
    }
    journal.check(request)
    grid = working_grid(reader, mpp.value, options.model_mpp, options.mpp_tolerance)
    lattice = Lattice.of(method.tile_px, method.overlap_px, options.max_nucleus_um / grid.mpp)
    if journal.plan is None:
        warn_of_other_mpp(reader, mpp)
        if mpp.value > _MOST_ENLARGED * options.model_mpp:
            logger.warning(
                "%s: %g um/px, enlarged to the network's %g um/px: expect missed and merged nuclei.",
                *(path, mpp.value, options.model_mpp),
            )
        small = thumbnail(reader, mpp.value, MASK_MPP)
        mask = _mask_of(reader, small, mpp.value, options)
        cells = active_cells(mask, MASK_MPP, grid, lattice)
        statistics = cell_statistics(reader, grid, lattice, cells) if method.own_statistics else None
        plan: dict[str, Any] = {
            "request": request,
            "grid": asdict(grid),
            "lattice": asdict(lattice),
            "statistics": statistics,
        }
        picture_mpp = _picture_mpp(reader, mpp.value)
        picture = small if picture_mpp == MASK_MPP else thumbnail(reader, mpp.value, picture_mpp)
        side = max(1, round(options.shard_px / lattice.stride_px))
        plan |= {"shard_cells": side, "tissue_mm2": _mm2(mask), "bounds": reader.bounds}
        plan["thumbnail_mpp"] = picture_mpp
        journal.write_plan(plan, mask, cells, picture)
    cells = journal.cells()
    region = None if options.region is None else read_region(Path(options.region))
    shards = cut_shards(cells, int((journal.plan or {})["shard_cells"]))
    return ShardTask(reader, grid, lattice, cells, region, method.unwritten), shards


def pending(journal: Journal, shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards that are not done."""
    digest = journal.digest
    return [shard for shard in shards if not journal.is_done(shard.index, digest)]


def build_segmenter(journal: Journal, method: Method) -> RegionSegmenter:
    """Return what segments the regions of a slide whose plan is there."""
    statistics = (journal.plan or {})["statistics"]
    return method.build(statistics and tuple(statistics))


def segment_shards(
    journal: Journal,
    task: ShardTask,
    segmenter: RegionSegmenter,
    shards: Sequence[Shard],
    done: ShardDone | None = None,
) -> None:
    """Segment shards one after the other; the next one is read at the same time, see also :attr:`ShardTask.unwritten`.

    A shard that fails is tried again at the end; of one that is done, ``done`` gets the mm2 and the network's seconds.

    Raises:
        SlideError: a shard failed twice.
    """
    failed = list(shards)
    for _ in range(_ATTEMPTS):
        failed = _one_pass(journal, task, segmenter, failed, done)
        if not failed:
            return
    reason = json.loads(journal.failed_file(failed[0].index).read_text(encoding="utf-8"))
    raise SlideError(
        f"{task.reader.path}: {len(failed)} of its shards failed {_ATTEMPTS} times: "
        f"{reason['error']}: {reason['message']}"
    )


def _one_pass(
    journal: Journal,
    task: ShardTask,
    segmenter: RegionSegmenter,
    shards: Sequence[Shard],
    done: ShardDone | None,
) -> list[Shard]:
    """Segment shards once; return those that failed."""
    digest = journal.digest
    failed: list[Shard] = []
    reads: deque[tuple[Shard, Stages, Future[Read]]] = deque()
    ends: deque[tuple[Shard, Stages, Future[None]]] = deque()

    def read(shard: Shard, stages: Stages) -> Read:
        with stages.time("read"):
            return task.read(shard)

    def end(shard: Shard, stages: Stages, pixels: Read, maps: Any) -> None:
        table, facts = finish(task, segmenter, shard, pixels, maps, stages)
        journal.write_shard(shard.index, table, {"plan": digest, **facts})

    def infer_next() -> None:
        while len(ends) > task.unwritten:
            settle()
        shard, stages, future = reads.popleft()
        try:
            pixels = future.result()
            with stages.time("network"):
                maps = segmenter.infer(pixels.pixels)
        except Exception as error:  # noqa: BLE001 - noted with the shard, when its turn comes
            failure: Future[None] = Future()
            failure.set_exception(SlideError(str(error)) if isinstance(error, OSError) else error)
            ends.append((shard, stages, failure))
        else:
            ends.append((shard, stages, ending.submit(end, shard, stages, pixels, maps)))

    def settle() -> None:
        shard, stages, future = ends.popleft()
        try:
            future.result()
        except OSError:  # of the output folder: nothing can be written, so nothing is gained by going on
            raise
        except Exception as error:  # noqa: BLE001 - one shard must not end the others
            failed.append(shard)
            journal.write_failure(shard.index, error)
        else:
            if done is not None:
                done(task.mm2(shard), stages.wall_s["network"])

    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as ending:
        for shard in shards:
            stages = Stages()
            reads.append((shard, stages, reading.submit(read, shard, stages)))
            if len(reads) > _READ_AHEAD:
                infer_next()
        while reads:
            infer_next()
        while ends:
            settle()
    return failed


def merge_slide(journal: Journal, outputs: Sequence[str] | None = None) -> None:
    """Write the outputs of a slide whose shards are all finished; no network is needed.

    Args:
        journal: journal of the slide.
        outputs: files to write, keys of :data:`~nucsam_monai.wsi.outputs.OUTPUTS`. Default: those of the plan.

    Raises:
        SlideError: the slide has no plan, shards are missing, or too much of the slide is unreadable.
    """
    plan = journal.plan
    if plan is None:
        raise SlideError(f"{journal.folder}: no plan.json. Run the segmentation first.")
    shards = cut_shards(journal.cells(), plan["shard_cells"])
    if missing := len(pending(journal, shards)):
        raise SlideError(f"{journal.folder}: {missing} of {len(shards)} shards are missing. Run it again.")
    unreadable = {tuple(block) for shard in shards for block in journal.facts(shard.index)["unreadable"]}
    grid = WorkingGrid(**plan["grid"])
    area = sum(journal.facts(shard.index)["mm2"] for shard in shards)
    lost = len(unreadable) * (BLOCK_PX * grid.mpp / 1000) ** 2
    if lost > MOST_UNREADABLE * area:
        raise SlideError(
            f"{journal.folder}: {lost:.3f} of {area:.3f} mm2 are unreadable. Copy the slide again."
        )
    request = plan["request"]
    facts = {"mpp": request["mpp"]["value"], "scale": grid.scale, "geojson_origin": plan["bounds"][:2]}
    small = journal.thumbnail()
    summary = Summary(small.shape[:2], plan["thumbnail_mpp"])  # type: ignore[arg-type]
    tables = merged_shards(journal, len(shards))
    name = request["slide"]["name"]
    kinds = request["options"]["outputs"] if outputs is None else outputs
    names = write_nuclei(journal.folder, tables, kinds, name=name, facts=facts, grid=grid, summary=summary)
    names += write_pictures(journal.folder, small, summary)
    status = "partial" if unreadable else "done" if summary.nuclei else "done_empty"
    document = {"slide": name, "status": status, **summary.statistics(plan["tissue_mm2"])}
    document |= {
        "unreadable_mm2": lost,
        "mpp": request["mpp"],
        "method": request["method"],
        "plan": journal.digest,
    }
    write_json(journal.folder / "statistics.json", document)
    journal.finish([*names, "statistics.json"])


def result_of(journal: Journal, seconds: float = 0.0) -> SlideResult:
    """Return the result of a finished slide."""
    found = json.loads((journal.folder / "statistics.json").read_text(encoding="utf-8"))
    numbers = (found["nuclei"], found["tissue_mm2"], round(seconds, 1))
    return SlideResult(found["slide"], found["status"], *numbers, folder=str(journal.folder))


def request_of(options: SlideOptions) -> dict[str, Any]:
    """Return the options as the plan keeps them: files by their digest, so that they may move."""
    request = {
        key: list(value) if isinstance(value, tuple) else value for key, value in asdict(options).items()
    }
    if options.region is not None:
        request["region"] = sha256_of_file(options.region)
    if options.mask not in ("otsu", "all"):
        request["mask"] = sha256_of_file(options.mask)
    return request


def _mask_of(reader: SlideReader, small: np.ndarray, mpp: float, options: SlideOptions) -> np.ndarray:
    """Return where the slide is segmented, ``(h, w)`` bool at :data:`MASK_MPP`."""
    shape = (small.shape[0], small.shape[1])
    if options.mask == "all":
        mask = np.ones(shape, dtype=bool)
    elif options.mask == "otsu":
        mask = tissue_mask(small, MASK_MPP, options.max_nucleus_um)
    else:
        mask = given_mask(Path(options.mask), shape)
    scale = MASK_MPP / mpp
    if options.region is not None:
        mask &= draw_region(read_region(Path(options.region)), shape, scale)
    x, y, width, height = (side / scale for side in reader.bounds)
    outside = np.ones(shape, dtype=bool)
    outside[math.floor(y) : math.ceil(y + height), math.floor(x) : math.ceil(x + width)] = False
    return np.asarray(mask & ~outside)


def _picture_mpp(reader: SlideReader, mpp: float) -> float:
    """Return the micrometres per pixel of the thumbnail: as of the mask, but small slides get 1,000 pixels."""
    longest_um = max(reader.levels[0][:2]) * mpp
    return max(mpp, min(MASK_MPP, longest_um / _LEAST_THUMBNAIL_PX))


def cell_statistics(
    reader: SlideReader, grid: WorkingGrid, lattice: Lattice, cells: np.ndarray
) -> list[float]:
    """Return mean and standard deviation of the tissue over all colours.

    They are those of all its pixels if the image is in memory, else of cells all over the slide.
    """
    s = lattice.stride_px
    places = [(int(row), int(column)) for row, column in np.argwhere(cells)]
    counts = np.zeros(256, dtype=np.int64)
    for row, column in spread(places, len(places) if reader.is_in_memory else _SAMPLED_CELLS):
        x, y = column * s, row * s
        seen = read_grid(reader, grid, x, y, min(s, grid.width - x), min(s, grid.height - y)).pixels
        counts += np.bincount(seen.ravel(), minlength=256)
    if not counts.any():
        return [0.0, 1.0]
    grey = np.arange(256)
    mean = float((counts * grey).sum() / counts.sum())
    return [mean, float(np.sqrt((counts * (grey - mean) ** 2).sum() / counts.sum()))]


def _mm2(mask: np.ndarray) -> float:
    return float(np.count_nonzero(mask)) * (MASK_MPP / 1000) ** 2
