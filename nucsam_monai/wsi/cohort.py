"""Segment many slides with one bundle, in this process or on workers; all commands for slides call this module."""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.wsi.cluster import MethodSource, connect, load_in_workers, segment_slide_on
from nucsam_monai.wsi.ranks import Ranks
from nucsam_monai.wsi.readers import SlideError
from nucsam_monai.wsi.resume import known_result, remember
from nucsam_monai.wsi.run import SlideOptions, SlideResult, segment_cohort, segment_slide

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
