"""Segment many slides with one bundle, in this process or on workers; all commands for slides call this module."""

import csv
import io
import json
import logging
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nucsam_monai.io import write_json
from nucsam_monai.utils.errors import ConfigurationError, NucSAMError, OutputError
from nucsam_monai.utils.files import atomic_path, sha256_of_file
from nucsam_monai.wsi.cluster import MethodSource, connect, load_in_workers, segment_slide_on
from nucsam_monai.wsi.journal import Journal
from nucsam_monai.wsi.ranks import Ranks
from nucsam_monai.wsi.readers import SlideError, SlideMetadataError, fingerprint
from nucsam_monai.wsi.run import Method, SlideOptions, SlideResult, request_of, result_of, segment_slide

logger = logging.getLogger(__name__)

SUFFIXES = (
    ".svs",
    ".tif",
    ".tiff",
    ".ndpi",
    ".mrxs",
    ".scn",
    ".bif",
    ".vms",
    ".svslide",
    ".dcm",
    ".png",
    ".jpg",
)
"""Files of a folder that are taken for slides."""


def segment_slides(
    source: MethodSource,
    slides: Path | str,
    output_dir: Path | str,
    options: SlideOptions,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    overwrite: bool = False,
) -> list[SlideResult]:
    """Segment a slide, a folder or a list of slides, and print a line for each; call it again to resume.

    Args:
        source: source of the network.
        slides: a slide, a folder, or a text file with one path per line.
        output_dir: folder for the results, created if missing; every slide has a subfolder and a row of ``cohort.csv``.
        options: options of all slides.
        workers: number of processes on this machine; more than one needs Dask distributed.
        scheduler: address of a running Dask scheduler to use instead of processes on this machine.
        overwrite: delete the results of earlier runs.

    Raises:
        ConfigurationError: there is nothing to segment, or an option is not available for slides.
        SlideError: some slides failed; raised after the last slide.
    """
    paths, output_dir = slides_of(Path(slides)), Path(output_dir)
    known = {} if overwrite else {path: known_result(path, output_dir, source, options) for path in paths}
    done = {path: result for path, result in known.items() if result}
    # A network is loaded, and workers are started, only if there is something left to do.
    left = any(path not in done for path in paths)
    with ExitStack() as files:
        client = method = None
        if left and (workers > 1 or scheduler is not None):
            with ThreadPoolExecutor(1) as loader:
                loading = loader.submit(source.load)  # while the workers start and load it as well
                client = connect(files, workers, scheduler)
                load_in_workers(client, source)
                method = loading.result()
        elif left:
            method = source.load()

        def segment(path: Path) -> SlideResult:
            if method is None or path in done:
                return done[path]
            if client is None:
                result = segment_slide(path, output_dir, method, options, overwrite=overwrite)
            else:
                result = segment_slide_on(
                    client, path, output_dir, source, options, method=method, overwrite=overwrite
                )
            remember(path, output_dir, source, options, method)
            return result

        results = segment_cohort(paths, output_dir, segment)
    if Ranks.of_environment().rank:  # the first one speaks for all
        return results
    for result in results:
        sys.stdout.write(
            f"{result.slide}: {result.status}, {result.nuclei} nuclei, {result.mm2:.2f} mm2. {result.message}\n"
        )
    if broken := sum(result.status in ("failed", "refused") for result in results):
        raise SlideError(f"{broken} of {len(results)} slides failed; {output_dir / 'cohort.csv'} says why.")
    return results


def slides_of(path: Path) -> list[Path]:
    """Return the slides that a path stands for: itself, those of a folder, or the lines of a text file.

    Raises:
        ConfigurationError: there are none, or two would share a folder.
    """
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    elif path.suffix == ".txt":
        found = [Path(line.strip()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        found = [path]
    if not found:
        raise ConfigurationError(f"{path}: no slides in it (looked for {', '.join(SUFFIXES)}).")
    stems = [file.stem for file in found]
    if doubled := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ConfigurationError(
            f"{path}: several slides are called {doubled[0]}. Segment them into other folders."
        )
    return found


def segment_cohort(
    paths: Sequence[Path], output_dir: Path, segment: Callable[[Path], SlideResult]
) -> list[SlideResult]:
    """Segment slides one by one; a slide that fails does not stop the others.

    ``cohort.csv`` in the output folder has one row per slide and is updated after each.

    Args:
        paths: slides.
        output_dir: folder for the results; created if missing.
        segment: function that segments a slide.

    Raises:
        OutputError: the disk is full or read-only.
    """
    results: list[SlideResult] = []
    for path in tqdm(paths, desc="slides", disable=None):
        try:
            result = segment(path)
        except OutputError:  # the next slides could not be written either
            raise
        except (NucSAMError, MemoryError) as error:
            status = "refused" if isinstance(error, SlideMetadataError) else "failed"
            result = SlideResult(path.name, status, message=str(error))
            logger.error("%s", error)
        results.append(result)
        if not Ranks.of_environment().rank:
            write_cohort(output_dir, results)
    return results


def write_cohort(output_dir: Path, results: Sequence[SlideResult]) -> None:
    """Write ``cohort.csv``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(asdict(SlideResult("", ""))), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(result) for result in results)
    with atomic_path(output_dir / "cohort.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def remember(
    path: Path, output_dir: Path, source: MethodSource, options: SlideOptions, method: Method
) -> None:
    """Note what a finished slide was asked for, and the files that its network came from.

    Args:
        path: path of the slide.
        output_dir: folder of the run.
        source: source of the network.
        options: options of the slide.
        method: the network that it named.
    """
    files = {str(file.resolve()): sha256_of_file(file) for file in method.files}
    write_json(_note(path, output_dir), _asked(path, source, options, files))


def known_result(
    path: Path, output_dir: Path, source: MethodSource, options: SlideOptions
) -> SlideResult | None:
    """Return the result of a slide that is finished for exactly this; None says that it has to be looked at closely.

    Files alone decide: to load a network only to find that nothing is left to do takes seconds.
    """
    try:
        note = json.loads(_note(path, output_dir).read_text(encoding="utf-8"))
        files = {file: sha256_of_file(file) for file in note["files"]}
        same = _asked(path, source, options, files) == note
        journal = Journal(output_dir / path.stem)
        return result_of(journal) if same and journal.is_finished() else None
    except (OSError, ValueError, KeyError):
        return None


def _note(path: Path, output_dir: Path) -> Path:
    return output_dir / path.stem / "asked.json"


def _asked(path: Path, source: MethodSource, options: SlideOptions, files: dict[str, str]) -> dict[str, Any]:
    asked = {"slide": fingerprint(path), "source": asdict(source), "options": request_of(options)}
    return dict(json.loads(json.dumps({**asked, "files": files}, default=str)))
