"""Evaluate label maps that any tool predicted against a dataset folder.

Examples::

    python scripts/evaluate_predictions.py --dataset data/monuseg --predictions stardist/monuseg
    python scripts/evaluate_predictions.py --dataset data/pannuke --predictions cellvit --classes cellvit/classes \
        --output_dir output/cellvit --compare_with output/hovernet

Predictions are one label map per image, named like the image (``<id>.png``, ``.tif``, ``.npy`` or ``.mat``, or
``<id>_instances.tif`` as the bundles write them): 0 is background, every nucleus has an id of its own. With classes
there is one file per image too: JSON with ``{id: class id}``, class ids from 0 in the order of the dataset's class
names, or a map of classes in which 0 is background and 1 the first class.

Other evaluations to compare with are folders that this script, or the evaluation of a bundle, wrote.
"""

import csv
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.apps.prediction_folder import find_classes, find_predictions, read_samples
from nucsam_monai.data import DatasetMetadata, load_items, read_dataset
from nucsam_monai.data.converters.progress import with_progress
from nucsam_monai.data.splits import SPLITS
from nucsam_monai.io import write_evaluation
from nucsam_monai.metrics import (
    Bootstrap,
    DatasetEvaluation,
    compare,
    evaluate,
    matching_radius_px,
)
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.names import counted

logger = logging.getLogger(__name__)

FEW_UNITS = 10
COMPARED = ("dice", "aji", "pq", "mpq")


def detection_radius_px(radius_px: float | None, metadata: DatasetMetadata) -> float | None:
    """Return the radius within which a centroid counts as detected: as given, or by the dataset's resolution."""
    if radius_px is not None:
        return float(radius_px)
    if metadata.magnification is None and metadata.mpp is None:
        logger.info("no detection scores: the dataset names no magnification. Pass --radius_px (12 at 40x).")
        return None
    return matching_radius_px(metadata.magnification, metadata.mpp)


def read_per_image(path: Path) -> list[dict[str, Any]]:
    """Read the per-image table of an earlier evaluation.

    Args:
        path: the evaluation's folder or a file in it.

    Raises:
        ConfigurationError: there is no such table.
    """
    table = (path if path.is_dir() else path.parent) / "per_image.csv"
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ConfigurationError(
            f"--compare_with {path}: {table.name} cannot be read ({error.strerror}). Pass the folder that an "
            "evaluation wrote."
        ) from error
    return [{key: cell if cell != "" else None for key, cell in row.items()} for row in rows]


def summary_text(report: DatasetEvaluation) -> str:
    """Return the values of all images, and of every class, as lines to print."""
    overall = report.summary[-1]
    level = f"{100 * report.bootstrap.confidence:g} % interval over {counted(report.units, report.unit)}"
    lines = [f"{overall.name}: {counted(overall.images, 'image')}", f"{'metric':<22}{'value':>9}   {level}"]
    if report.units < FEW_UNITS:
        lines[0] += f" (intervals over fewer than {FEW_UNITS} {report.unit}s are too narrow)"
    skipped = {entry.metric: entry for entry in report.skipped}
    for name, found in {**overall.estimates, **report.tissue_means}.items():
        note = (
            f"   {counted(skipped[name].images, 'image')} without ({skipped[name].reason})"
            if name in skipped
            else ""
        )
        lines.append(_line(name, found.value, found.ci_low, found.ci_high) + note)
    for entry in report.per_class:
        lines.append(f"class {entry.name}: in {counted(entry.images, 'image')}")
        lines += [_line(name, e.value, e.ci_low, e.ci_high) for name, e in entry.estimates.items()]
    return "\n".join(lines)


def _line(name: str, value: float, low: float, high: float) -> str:
    interval = "" if math.isnan(low) else f"   {low:.4f} to {high:.4f}"
    return f"{name:<22}{'-' if math.isnan(value) else format(value, '9.4f'):>9}{interval}"


def comparison_rows(
    report: DatasetEvaluation, earlier: Sequence[Mapping[str, Any]], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Compare with the per-image table of another evaluation in every main metric that both have."""
    shared = [name for name in COMPARED if earlier and name in earlier[0] and name in report.per_image[0]]
    return [asdict(compare(report.per_image, earlier, name, bootstrap)) for name in shared]


def comparison_text(rows: Sequence[Mapping[str, Any]], other: Path) -> str:
    """Return the comparison as lines to print."""
    lines = [f"difference to {other} (Wilcoxon signed-rank test is the one to rely on)"]
    lines += [
        _line(row["metric"], row["mean_difference"], row["ci_low"], row["ci_high"])
        + f"   {counted(row['pairs'], row['unit'])}, Wilcoxon p {row['wilcoxon_p']:.3g}, t-test p {row['t_p']:.3g}"
        for row in rows
    ]
    return "\n".join(lines)


def warn_of_binary_masks(report: DatasetEvaluation) -> None:
    """Say so where every prediction is one object but the ground truth has many."""
    most_predicted = max(row["tp"] + row["fp"] for row in report.per_image)
    if most_predicted == 1 < max(row["tp"] + row["fn"] for row in report.per_image):
        logger.warning(
            "no prediction has more than one id, as in binary masks. Give every nucleus an id of its own."
        )


def main(
    dataset: str,
    predictions: str,
    split: str = "test",
    split_protocol: str | None = None,
    classes: str | None = None,
    output_dir: str = "output/evaluation",
    radius_px: float | None = None,
    compare_with: str | None = None,
    workers: int = 1,
    seed: int = 0,
    **unknown: object,
) -> None:
    """Measure predictions, print the summary and write the tables of an evaluation.

    Args:
        dataset: a dataset folder.
        predictions: folder with one label map per image of the split.
        split: ``training``, ``validation``, ``test``, several joined by "+", or ``all``, as after a
            cross-validation in which every image was once a test image.
        split_protocol: a named split of the dataset instead of the one that its ``dataset.json`` is split by.
        classes: folder with the classes of the predicted nuclei; without, classes are not measured.
        output_dir: where ``per_image.csv``, ``summary.csv``, ``summary.json`` and, where the dataset has tissues or
            classes, ``per_tissue.csv`` and ``per_class.csv`` go.
        radius_px: distance within which a centroid counts as detected; by the dataset's magnification by default.
        compare_with: folder of another evaluation of the same images, to test the difference.
        workers: processes that measure.
        seed: of the bootstrap.
        unknown: refused; without it Fire would complain about a misspelt option only after the work.

    Raises:
        ConfigurationError: an option is unknown.
    """
    if unknown:
        raise ConfigurationError(f"unknown option --{next(iter(unknown))}; see --help.")
    folder, bootstrap = Path(dataset), Bootstrap(seed=seed)
    content = read_dataset(folder)
    items = load_items(folder, SPLITS if split == "all" else split.split("+"), protocol=split_protocol)
    ids = [item["id"] for item in items]
    others = sorted({item["id"] for item in content.items()} - set(ids))
    paths = find_predictions(Path(predictions), ids, others, split)
    class_paths = find_classes(Path(classes), ids, content.metadata) if classes is not None else {}
    earlier = [] if compare_with is None else read_per_image(Path(compare_with))
    report = evaluate(
        read_samples(with_progress(items, "evaluating", unit="image"), paths, class_paths),
        class_names=content.metadata.class_names if class_paths else ("nucleus",),
        radius_px=detection_radius_px(radius_px, content.metadata),
        bootstrap=bootstrap,
        workers=workers,
    )
    warn_of_binary_masks(report)
    comparison = comparison_rows(report, earlier, bootstrap)
    facts = {
        "dataset": str(folder),
        "split": split,
        "split_protocol": split_protocol or content.metadata.protocol,
        "predictions": predictions,
        "compared_with": compare_with,
    }
    write_evaluation(Path(output_dir), {**facts, **report.to_dict(), "comparison": comparison})
    print(summary_text(report))
    if comparison:
        print(comparison_text(comparison, Path(compare_with)))
    print(f"tables: {output_dir}")


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(main, arguments, name="evaluate")


if __name__ == "__main__":
    sys.exit(run())
