"""Segment whole slides with a bundle; run the command again to resume.

Examples:
    nucsam slides run unsam slides/ output/slides
    nucsam slides run unsam case.svs output/slides --mpp 0.25 --workers 2
    nucsam slides status output/slides
    nucsam slides merge output/slides
    nucsam slides evaluate output/slides/case case_truth.parquet
"""

import argparse
import ast
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from tqdm.contrib.logging import logging_redirect_tqdm

from nucsam_monai.utils.errors import ConfigurationError, NucSAMError

EXIT_FAILED, EXIT_WRONG_CALL, EXIT_STOPPED = 3, 2, 143


def main() -> int:
    """Run a command; return 0, 2 for a wrong call, or 3 if some slides failed."""
    arguments = parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        with logging_redirect_tqdm():
            return int(arguments.command(arguments))
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return EXIT_WRONG_CALL
    except NucSAMError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        print(f"{error.name}: not installed. Type: pip install 'nucsam-monai[slides]'.", file=sys.stderr)
        return EXIT_WRONG_CALL
    except OSError as error:
        where = error.filename or arguments.output_dir
        print(
            f"{where}: cannot be written ({error.strerror or error}). What is finished stays: make room or choose "
            "another folder, and run the same command again.",
            file=sys.stderr,
        )
        return EXIT_FAILED


def stop(number: int, frame: FrameType | None) -> None:
    """End at once: what is finished stays, and the next run takes it from there."""
    # Not by print, which may be at work in another thread.
    os.write(2, b"\nStopped. Run the same command again to continue.\n")
    os._exit(EXIT_STOPPED)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        "nucsam slides", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = result.add_subparsers(required=True, metavar="command")
    run = commands.add_parser("run", help="segment slides")
    option = run.add_argument
    option("bundle", help="name of a bundle, for example unsam")
    option("input", type=Path, help="slide, folder of slides, or text file with one path per line")
    option("output_dir", type=Path, help="folder for the results")
    option("--weights", help="short name or path of weights (default: the pretrained weights)")
    option("--device", help="for example cpu or cuda:0 (default: a GPU if there is one)")
    option("--domain", help="domain of the slides, for methods with domains")
    option("--option", action="append", default=[], metavar="KEY=VALUE", help="a key of inference.json")
    option("--mpp", type=float, help="micrometres per pixel at level 0, for files without this information")
    option(
        "--model_mpp", type=float, default=0.25, help="micrometres per pixel of the training (default: 0.25)"
    )
    option("--mask", default="otsu", help="tissue: otsu (default), all, or a mask image of the whole slide")
    option("--region", help="GeoJSON file with the region to segment, in pixels of level 0")
    option("--shard_px", type=int, default=4032, help="approximate side length of a shard (default: 4032)")
    option(
        "--max_nucleus_um", type=float, default=30.0, help="size of the largest nucleus in um (default: 30)"
    )
    known = "parquet, geojson, csv, labels (OME-Zarr), spatialdata; separated by commas"
    option("--outputs", default="parquet,geojson,csv", help=f"{known} (default: %(default)s)")
    option("--workers", type=int, default=1, help="processes; more than one needs Dask distributed")
    option("--scheduler", help="address of a running Dask scheduler")
    option("--overwrite", action="store_true", help="delete earlier results with other options")
    run.set_defaults(command=run_slides)
    texts = {"merge": "write the outputs of finished shards", "status": "show the progress"}
    for name, command in (("merge", merge_slides), ("status", show_status)):
        other = commands.add_parser(name, help=texts[name])
        other.add_argument("output_dir", type=Path, help="folder of the results")
        other.set_defaults(command=command)
        if name == "merge":
            other.add_argument("--outputs", help=f"instead of those of the run: {known}")
    evaluate = commands.add_parser("evaluate", help="compare a slide's nuclei with the ground truth")
    evaluate.add_argument("folder", type=Path, help="results of one slide")
    evaluate.add_argument("truth", type=Path, help="ground truth as GeoParquet")
    evaluate.set_defaults(command=evaluate_slide)
    return result


def run_slides(arguments: argparse.Namespace) -> int:
    """Segment a slide, a folder or a list."""
    from nucsam_monai.wsi import SlideOptions, segment_slides
    from nucsam_monai.wsi.cluster import MethodSource

    options = SlideOptions(
        mpp=arguments.mpp,
        model_mpp=arguments.model_mpp,
        mask=arguments.mask,
        region=arguments.region,
        shard_px=arguments.shard_px,
        max_nucleus_um=arguments.max_nucleus_um,
        outputs=tuple(arguments.outputs.split(",")),
    )
    pairs = [option.partition("=")[::2] for option in arguments.option]
    settings = tuple((key, value_of(value)) for key, value in pairs)
    segment_slides(
        MethodSource(arguments.bundle, arguments.weights, settings, arguments.domain, (), arguments.device),
        arguments.input,
        arguments.output_dir,
        options,
        workers=arguments.workers,
        scheduler=arguments.scheduler,
        overwrite=arguments.overwrite,
    )
    return 0


def merge_slides(arguments: argparse.Namespace) -> int:
    """Write the outputs of all slides whose shards are done; no network is needed."""
    from nucsam_monai.wsi import Journal, merge_slide
    from nucsam_monai.wsi.outputs import check_outputs

    outputs = arguments.outputs and arguments.outputs.split(",")
    check_outputs(outputs or ())
    for plan in plans_in(arguments.output_dir):
        journal = Journal(plan.parent)
        with journal.locked():
            merge_slide(journal, outputs)
        print(f"{plan.parent.name}: merged")
    return 0


def plans_in(folder: Path) -> list[Path]:
    """Return the plans of all slides in an output folder.

    Raises:
        ConfigurationError: there are none.
    """
    plans = sorted(folder.glob("*/plan.json"))
    if not plans:
        raise ConfigurationError(f"{folder}: no slides in it. Pass the output folder of 'nucsam slides run'.")
    return plans


def show_status(arguments: argparse.Namespace) -> int:
    """Print for each slide how many of its shards are done."""
    from nucsam_monai.wsi import Journal
    from nucsam_monai.wsi.grid import cut_shards
    from nucsam_monai.wsi.run import pending

    for file in plans_in(arguments.output_dir):
        journal = Journal(file.parent)
        shards = cut_shards(journal.cells(), (journal.plan or {})["shard_cells"])
        left = {shard.index for shard in pending(journal, shards)}
        done = [shard.index for shard in shards if shard.index not in left]
        seconds = sum(sum(journal.facts(index)["seconds"].values()) for index in done)
        failed = sum(journal.failed_file(index).exists() for index in left)
        state = (
            "finished"
            if journal.is_finished()
            else f"about {seconds / max(len(done), 1) * len(left):.0f} s left"
        )
        print(f"{file.parent.name}: {len(done)} of {len(shards)} shards, {failed} failed, {state}")
    return 0


def evaluate_slide(arguments: argparse.Namespace) -> int:
    """Print the instance metrics of a slide against the truth, both as outlines."""
    from nucsam_monai.metrics import LabelPair, instance_metrics
    from nucsam_monai.metrics.outlines import table_of_outlines

    table = table_of_outlines(arguments.truth, arguments.folder / "nuclei.parquet")
    metrics = instance_metrics(LabelPair.of_table(table))
    for name, value in metrics._asdict().items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    return 0


def value_of(text: str) -> bool | int | float | str | None:
    """Return the number, switch or None that a text stands for, else the text."""
    try:
        value = ast.literal_eval({"true": "True", "false": "False", "null": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (bool, int, float)) or value is None else text


if __name__ == "__main__":
    sys.exit(main())
