"""The report of an experiment: tables, tests, figures and pictures in one folder."""

import datetime
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.description import COST_IMAGE_PX, COST_NUCLEI, DatasetUse, Experiment, Printed, read_printed
from experiments.figures import Curve, confusion_matrix, plot_all, plot_confusion, qualitative_sheet
from experiments.shared import system_printed_as
from experiments.slides import slides_section
from experiments.steps import Evaluation, Grid, Places, Step, folder_of, is_done, read_done
from experiments.tables import (
    Results,
    Table,
    build_table,
    csv_rows,
    curves_of,
    first_done,
    latex,
    markdown,
    not_run,
    paired_tests,
    read_results,
)
from nucsam_monai.data import read_dataset
from nucsam_monai.io import write_table
from nucsam_monai.utils.errors import NucSAMError
from nucsam_monai.utils.files import atomic_path
from nucsam_monai.utils.names import counted

logger = logging.getLogger(__name__)

SHEET_IMAGES = 3
CONFUSION_FILE = "confusion.csv"
_CURVES = ("val_dice", "val_mask_iou")


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        folder: where.
        results: all values.
        complete: whether every pair of the experiment is in it.
    """

    folder: Path
    results: Results
    complete: bool


def write_report(experiment: Experiment, grid: Grid, places: Places, folder: Path, command: str) -> Report:
    """Write the report of what is done so far.

    The files are ``results.md``, ``results.csv``, ``results.tex``, ``paired_tests.csv``, the figures of
    :func:`~experiments.plots.plot_all`, and ``sheet_<dataset>.png`` with the answers of all methods
    to the same images.

    Args:
        experiment: the experiment.
        grid: its steps.
        places: the folders.
        folder: where the report goes.
        command: how it was started, for the reader.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = read_results(experiment, grid, places)
    printed = None if experiment.printed is None else read_printed(experiment.printed)
    table = build_table(experiment, results, printed)
    tests = paired_tests(experiment, results)
    pictures = plot_all(experiment, results, read_curves(grid, places), folder)
    pictures += write_sheets(experiment, grid, places, folder)
    steps: list[Step] = [*grid.evaluations, *grid.measurements, *grid.slides]
    done = [step for step in steps if is_done(step, places)]
    _write_text(folder / "results.tex", _latex(experiment, table, printed))
    write_table(folder / "results.csv", csv_rows(table, results), columns=None)
    if tests:
        write_table(folder / "paired_tests.csv", tests)
    state = (
        "" if len(done) == len(steps) else f"**Not complete: {len(done)} of {len(steps)} steps are done.**"
    )
    commits = sorted({str(read_done(step, places).get("git_commit", "unknown"))[:12] for step in done})
    sections = [
        f"# {experiment.title}",
        state,
        _facts(experiment, commits, results),
        f"```bash\n{command}\n```",
        markdown(table, transpose=experiment.transpose),
        _legend(experiment, table, printed),
        _tests_section(tests),
        _printed_section(experiment, table, printed),
        slides_section(grid.slides, places),
        "\n".join(f"![{path.stem.replace('_', ' ')}]({path.name})" for path in pictures),
    ]
    _write_text(folder / "results.md", "\n\n".join(section for section in sections if section) + "\n")
    return Report(folder, results, len(done) == len(steps))


def read_curves(grid: Grid, places: Places) -> dict[str, Curve]:
    """Return the validation metric by epoch of the first training of each method and data."""
    curves: dict[str, Curve] = {}
    for pair in grid.evaluations:
        if pair.training is None:
            continue
        data = "+".join(dataset.name for dataset in pair.training.datasets)
        label = f"{pair.method.name}, {data}"
        rows = [] if label in curves else curves_of(pair, places)
        if not rows:
            continue
        metric = next((name for name in _CURVES if any(row["metric"] == name for row in rows)), None)
        curves[label] = sorted((row["epoch"], row["value"]) for row in rows if row["metric"] == metric)
    return curves


def write_sheets(experiment: Experiment, grid: Grid, places: Places, folder: Path) -> list[Path]:
    """Draw the first images of each dataset with the answers of all methods."""
    evaluations = first_done(grid.evaluations, places)
    written = []
    for dataset in experiment.datasets:
        found = {
            method.name: evaluations[method.name, dataset.name]
            for method in experiment.methods
            if (method.name, dataset.name) in evaluations
        }
        if not found:
            continue
        path = folder / f"sheet_{dataset.name}.png"
        try:
            items = tested_items(dataset, dataset.split_protocols[0], places)
            qualitative_sheet(items[:SHEET_IMAGES], found, path)
            written.append(path)
        except (NucSAMError, OSError) as error:
            logger.warning("%s: not drawn: %s", path, error)
    return written


def tested_items(dataset: DatasetUse, split_protocol: str | None, places: Places) -> list[dict[str, str]]:
    """Return the images of a dataset that are tested with one of its splits."""
    found = read_dataset(places.dataset_folder(dataset))
    if split_protocol is not None:
        found = found.with_protocol(split_protocol)
    return [item for split in dataset.splits for item in found.splits[split]]


def write_confusion(pair: Evaluation, places: Places) -> None:
    """Write ``confusion.csv`` and ``confusion.png`` into the folder of a finished pair, where it has classes."""
    folder = folder_of(pair, places)
    names = read_dataset(places.dataset_folder(pair.dataset)).metadata.class_names
    if len(names) < 2 or (folder / CONFUSION_FILE).exists():
        return
    matrix = confusion_matrix(tested_items(pair.dataset, pair.split_protocol, places), folder, names)
    if not matrix.any():
        return
    plot_confusion(matrix, names, folder / "confusion.png")
    rows = [
        {"true": true, **dict(zip((*names, "missed"), numbers.tolist(), strict=True))}
        for true, numbers in zip((*names, "false positive"), matrix, strict=True)
    ]
    write_table(folder / CONFUSION_FILE, rows)


def _facts(experiment: Experiment, commits: Sequence[str], results: Results) -> str:
    images = {dataset: count for (_, dataset), count in results.images.items()}
    data = ", ".join(f"{name} ({counted(count, 'image')})" for name, count in images.items()) or "nothing yet"
    tested = f"; tested on {data}" if experiment.test_metrics else ""
    seeds = ", ".join(map(str, experiment.seeds))
    return (
        f"Protocol `{experiment.protocol}`{_trained_on(experiment)}{tested}; "
        f"seeds {seeds}; commit {', '.join(commits) or 'unknown'}; {datetime.date.today().isoformat()}."
    )


def _trained_on(experiment: Experiment) -> str:
    tests_of: dict[str, list[str]] = {}
    for dataset in experiment.datasets:
        trained = "+".join(source.name for source in experiment.trained_before(dataset))
        tests_of.setdefault(trained, []).append(dataset.name)
    if len(tests_of) == 1:
        return "".join(f", trained on {trained}" for trained in tests_of if trained)
    return "".join(f", trained on {trained} for {' and '.join(tests)}" for trained, tests in tests_of.items())


def _legend(experiment: Experiment, table: Table, printed: Printed | None) -> str:
    scale = "Shares are in per cent. " if table.percent else ""
    text = (
        f"{scale}Bold: the best of ours. Brackets: 95 % bootstrap interval over images, or over slides or patients "
        "where they are known; ±: standard deviation over seeds and splits."
    )
    if experiment.cost_metrics:
        text += (
            f" Operations and speed: an image of {COST_IMAGE_PX} x {COST_IMAGE_PX} px with {COST_NUCLEI} nuclei, each "
            "prompted where the method prompts nuclei."
        )
    if printed is None or not any(
        entry.printed is not None for row in table.entries.values() for entry in row
    ):
        return text
    return f"{text} Italics: printed in table {printed.number} of {printed.source}."


def _tests_section(tests: Sequence[Mapping[str, Any]]) -> str:
    if not tests:
        return ""
    lines = [
        "## Paired tests",
        "",
        "Difference of the first method to the second on the same images; the p-values are those of single tests.",
        "",
        "| dataset | methods | metric | pairs | difference | Wilcoxon p | t-test p |",
        "|---|---|---|---|---|---|---|",
    ]
    for test in tests:
        lines.append(
            f"| {test['dataset']} | {test['method']} - {test['other']} | {test['metric']} | {test['pairs']} "
            f"{test['unit']}s | {test['mean_difference']:.4f} [{test['ci_low']:.4f}, {test['ci_high']:.4f}] | "
            f"{test['wilcoxon_p']:.3g} | {test['t_p']:.3g} |"
        )
    return "\n".join(lines)


def _printed_section(experiment: Experiment, table: Table, printed: Printed | None) -> str:
    """Return the printed rows of methods that are not run here."""
    if printed is None:
        return ""
    datasets = {column.dataset for column in table.columns}
    columns = list(dict.fromkeys(key for row in printed.values.values() for key in row if key[0] in datasets))
    if not columns:
        return f"The paper's own numbers ({printed.source}, table {printed.number}) are of other data."
    lines = [
        f"## Printed in {printed.source}, table {printed.number}, not run here",
        "",
        "| method | " + " | ".join(f"{dataset} {metric}" for dataset, metric in columns) + " | why |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for row in not_run(printed, experiment):
        cells = (printed.values[row].get(column) for column in columns)
        texts = ["-" if cell is None else f"{cell:g}" for cell in cells]
        system = system_printed_as(row)
        lines.append(
            "| " + " | ".join([row, *texts, (system.reason if system else "") or "not in this form"]) + " |"
        )
    return "\n".join(lines) if len(lines) > 4 else ""


def _latex(experiment: Experiment, table: Table, printed: Printed | None) -> str:
    caption = f"{experiment.title}. {_legend(experiment, table, printed)}"
    return latex(table, caption=caption, label=experiment.full_name, transpose=experiment.transpose)


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
