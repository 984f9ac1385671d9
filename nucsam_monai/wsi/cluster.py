"""Segment shards on several processes or machines with Dask distributed; the journal collects their results."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nucsam_monai.utils.errors import ConfigurationError, OutputError
from nucsam_monai.utils.machine import reuse_freed_memory
from nucsam_monai.wsi.bundles import method_of
from nucsam_monai.wsi.grid import Shard
from nucsam_monai.wsi.journal import Journal
from nucsam_monai.wsi.progress import Progress, seconds_per_tile
from nucsam_monai.wsi.readers import SlideError
from nucsam_monai.wsi.run import (
    Method,
    SlideOptions,
    SlideResult,
    build_segmenter,
    merge_slide,
    pending,
    prepare,
    result_of,
    segment_shards,
)
from nucsam_monai.wsi.shards import RegionSegmenter, ShardTask

logger = logging.getLogger(__name__)

_SHARDS_PER_TASK = 4
_DASK = {
    "distributed.worker.daemon": False,  # a daemon may start no processes
    "distributed.worker.multiprocessing-method": "forkserver",  # which imports for all workers, see connect()
    # Without Dask's MALLOC_TRIM_THRESHOLD_, which has every large tensor given back to the system and asked for again:
    # a network takes twice the processor's time with it.
    "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 1},
    "distributed.scheduler.allowed-failures": 1,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.profile.enabled": False,  # which looks at the stack a hundred times a second
    "distributed.admin.large-graph-warning-threshold": "100MB",
}
_IMPORTED_ONCE = [
    "distributed.nanny",
    "nucsam_monai.handlers",
    "nucsam_monai.segmenter",
    "nucsam_monai.wsi.cluster",
]


@dataclass(frozen=True)
class MethodSource:
    """Tell a worker where to find the network; only names and numbers, so that no weights are sent.

    Attributes:
        bundle: folder of the bundle.
        checkpoint: weights file; None takes the weights that the configuration names.
        settings: other values of the configuration, chosen once.
        domain: domain of the slides.
        options: values for the slides.
        device: None takes a GPU if there is one; workers of one machine take turns.
    """

    bundle: str
    checkpoint: str | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    domain: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    device: str | None = None

    def load(self) -> Method:
        """Load the bundle in this process and return it as a method for slides."""
        from nucsam_monai import load

        segmenter = load(self.bundle, self.checkpoint, self.device, **dict(self.settings))
        return method_of(segmenter, self.domain, **dict(self.options))


def load_in_workers(client: Any, source: MethodSource) -> None:
    """Have every worker load the network, and do not wait; an error appears when a slide needs it."""
    from distributed import fire_and_forget

    for worker in client.scheduler_info()["workers"]:
        fire_and_forget(client.submit(_load, source, workers=[worker], pure=False))


def _load(source: MethodSource) -> None:
    _loaded(source)


def segment_slide_on(
    client: Any,
    path: Path,
    output_dir: Path,
    source: MethodSource,
    options: SlideOptions,
    *,
    method: Method | None = None,
    overwrite: bool = False,
) -> SlideResult:
    """Segment a slide with the workers of a Dask client; see :func:`nucsam_monai.wsi.segment_slide`.

    Args:
        client: client of Dask distributed, whose workers see the same files.
        path: path of the slide.
        output_dir: folder for the results; created if missing.
        source: source of the network.
        options: options of the slide.
        method: the same network, already loaded, to make the plan; None loads it.
        overwrite: delete the results of an earlier run.

    Raises:
        SlideError: a shard failed, or crashed its worker, twice.
        OutputError: the disk is full or read-only.
    """
    from distributed import KilledWorker

    start = time.perf_counter()
    journal = Journal(output_dir / path.stem)
    with journal.locked():
        if overwrite:
            journal.clear()
        method = method or source.load()
        task, shards = prepare(path, journal, method, options)
        if not journal.is_finished():
            if left := pending(journal, shards):
                arguments = (str(path), str(journal.folder), source, options, journal.digest)
                errors = _segment_with(client, arguments, task, left)
                if full := [error for error in errors if isinstance(error, OutputError)]:
                    raise full[0]
                if still := pending(journal, shards):
                    reason = "it ends its workers" if isinstance(errors[0], KilledWorker) else errors[0]
                    raise SlideError(f"{path}: {len(still)} of its shards failed: {reason}")
            merge_slide(journal)
    return result_of(journal, time.perf_counter() - start)


def _segment_with(
    client: Any, arguments: tuple[Any, ...], task: ShardTask, left: Sequence[Shard]
) -> list[Any]:
    """Have workers segment shards, and follow them; return the errors, the first one first."""
    from distributed import KilledWorker, as_completed

    workers = len(client.scheduler_info()["workers"])
    parts = parts_for([shard.index for shard in left], workers)
    timing = client.submit(time_tiles, *arguments, pure=False, priority=1)
    futures = [client.submit(segment_part, *arguments, part, pure=False) for part in parts]
    # Not in this process: a slide that ends its workers must not end the cohort.
    errors = [timing.exception()] if timing.exception() else []
    tile_s = None if errors else timing.result()
    with Progress(task, left, workers=workers, tile_s=tile_s) as progress:
        for future in as_completed(futures):
            if future.status == "finished":
                progress.done(*future.result())
            else:
                errors.append(future.exception())
            if any(isinstance(error, (KilledWorker, OutputError)) for error in errors):
                client.cancel(futures)  # the rest would end in the same way, and the next run continues here
                break
    return errors


def parts_for(indices: Sequence[int], workers: int) -> list[tuple[int, ...]]:
    """Divide shards into parts for workers, the last ones small, so that all workers end at about the same time."""
    left, parts = tuple(indices), []
    while left:
        size = max(1, min(_SHARDS_PER_TASK, len(left) // (2 * workers)))
        parts.append(left[:size])
        left = left[size:]
    return parts


def segment_part(
    path: str, folder: str, source: MethodSource, options: SlideOptions, digest: str, indices: Sequence[int]
) -> tuple[float, float]:
    """Segment some shards in a worker; return mm2 and the network's seconds: the nuclei are in the journal."""
    task, shards, segmenter, journal = _prepared(path, folder, source, options, digest)
    left = [shard for shard in pending(journal, shards) if shard.index in indices]
    segment_shards(journal, task, segmenter, left)
    facts = [journal.facts(index) for index in indices]
    return sum(one["mm2"] for one in facts), sum(one["seconds"]["network"] for one in facts)


def time_tiles(
    path: str, folder: str, source: MethodSource, options: SlideOptions, digest: str
) -> float | None:
    """Return the seconds that a tile takes in a worker."""
    task, _, segmenter, _ = _prepared(path, folder, source, options, digest)
    return seconds_per_tile(task, segmenter)


@lru_cache(maxsize=1)
def _prepared(
    path: str, folder: str, source: MethodSource, options: SlideOptions, digest: str
) -> tuple[ShardTask, list[Shard], RegionSegmenter, Journal]:
    """Open a slide once for all its parts; ``digest`` tells a plan from an earlier one in the same folder."""
    method, journal = _loaded(source), Journal(Path(folder))
    task, shards = prepare(Path(path), journal, method, options)
    return task, shards, build_segmenter(journal, method), journal


@lru_cache(maxsize=1)
def _loaded(source: MethodSource) -> Method:
    from distributed import get_worker

    name = get_worker().name
    if isinstance(name, int):  # of a worker that this machine started: each takes another GPU
        os.environ["LOCAL_RANK"] = str(name)
    reuse_freed_memory(blocks_of_all_sizes=True)
    return source.load()


def connect(files: ExitStack, workers: int, scheduler: str | None) -> Any:
    """Return a client of a user's scheduler, or of workers started on this machine, closed with ``files``.

    Args:
        files: closes client and workers.
        workers: processes to start; ignored with a scheduler.
        scheduler: address such as ``tcp://host:8786``.

    Raises:
        ConfigurationError: Dask distributed is not installed, or the scheduler does not answer.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
        from distributed.utils import get_mp_context
    except ImportError as error:
        raise ConfigurationError(
            "workers: several need Dask distributed. Install it with: pip install 'nucsam-monai[slides]'."
        ) from error
    logging.getLogger("distributed").setLevel(logging.WARNING)  # whose import lets every connection be logged
    files.enter_context(dask.config.set(_DASK))
    # A process of multiprocessing warns of what others left when they are stopped; nothing of it stays.
    sys.warnoptions.append("ignore:resource_tracker")
    if scheduler is not None:
        try:
            return files.enter_context(Client(scheduler, timeout=30))
        except OSError as error:
            raise ConfigurationError(f"scheduler {scheduler}: does not answer ({error}).") from error
    get_mp_context().set_forkserver_preload(_IMPORTED_ONCE)
    cluster = files.enter_context(
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            memory_limit=0,
        )
    )
    logger.info("dashboard: %s", cluster.dashboard_link)
    return files.enter_context(Client(cluster))
