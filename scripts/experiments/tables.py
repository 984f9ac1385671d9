"""Collect one value for each method, dataset and metric, and write them as Markdown, CSV and LaTeX tables."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from experiments.description import CORE_MINUTES, COST_METRICS, SECONDS_PER_EPOCH, Experiment, Printed
from experiments.steps import CURVES_FILE, Evaluation, Grid, Places, folder_of, is_done
from nucsam_monai.metrics import compare
from nucsam_monai.metrics.summary import TEXT_COLUMNS, summarise_by_domain

COST = "cost"
"""What tables call the dataset of parameters, operations and speed."""

LOWER_IS_BETTER = (
    "hd",
    "hd95",
    "trainable_m",
    "frozen_m",
    "total_m",
    "gmacs",
    SECONDS_PER_EPOCH,
    CORE_MINUTES,
)
NOT_SHARES = ("hd", "hd95", *COST_METRICS, SECONDS_PER_EPOCH, CORE_MINUTES)
"""Metrics that are not shares of one, so that percentages make no sense."""

PART = ":"
"""Stands between a metric and the class or tissue it is of."""


@dataclass(frozen=True)
class Cell:
    """One value of a table.

    Attributes:
        value: mean over seeds and splits.
        ci_low: lower bound of the 95 % bootstrap interval over images; NaN where there is none.
        ci_high: upper bound.
        deviation: standard deviation over seeds and splits; NaN where there is one of them.
        replicates: how many seeds and splits.
    """

    value: float
    ci_low: float = math.nan
    ci_high: float = math.nan
    deviation: float = math.nan
    replicates: int = 1


@dataclass(frozen=True)
class Results:
    """Everything that an experiment has measured so far.

    Attributes:
        cells: ``{(method, dataset, metric): value}``; the dataset of parameters and speed is :data:`COST`.
        rows: ``{(method, dataset): per-image table}``, averaged over seeds and splits.
        images: ``{(method, dataset): number of images}``.
    """

    cells: Mapping[tuple[str, str, str], Cell] = field(default_factory=dict)
    rows: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    images: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def value(self, method: str, dataset: str, metric: str) -> float:
        """Return one value; NaN where it was not measured."""
        cell = self.cells.get((method, dataset, metric))
        return math.nan if cell is None else cell.value


def read_results(experiment: Experiment, grid: Grid, places: Places) -> Results:
    """Read the evaluations and measurements that are done."""
    cells: dict[tuple[str, str, str], Cell] = {}
    rows: dict[tuple[str, str], Sequence[Mapping[str, Any]]] = {}
    for method in experiment.methods:
        for dataset in experiment.datasets:
            pairs = [pair for pair in grid.evaluations if (pair.method, pair.dataset) == (method, dataset)]
            folders = [folder_of(pair, places) for pair in pairs if is_done(pair, places)]
            if not folders:
                continue
            merged = merge_rows([read_table(folder / "per_image.csv") for folder in folders])
            rows[method.name, dataset.name] = merged
            found = dataset_cells(merged, [read_summary(folder) for folder in folders])
            found |= epoch_cells([curves_of(pair, places) for pair in pairs])
            cells |= {(method.name, dataset.name, metric): cell for metric, cell in found.items()}
    for measurement in grid.measurements:
        if is_done(measurement, places):
            cost = json.loads((folder_of(measurement, places) / "cost.json").read_text(encoding="utf-8"))
            pair = measurement.evaluation
            name = pair.method.name
            if not pair.method.train and pair.protocol != "cost_only":  # as it is: nothing of it was trained
                cost |= {"trainable_m": 0.0, "frozen_m": cost["total_m"]}
            cells |= {(name, COST, metric): Cell(float(cost[metric])) for metric in COST_METRICS}
    return Results(cells, rows, {key: len(table) for key, table in rows.items()})


def curves_of(pair: Evaluation, places: Places) -> list[dict[str, Any]]:
    """Return what MLflow recorded of a pair's training, a row for each metric and epoch; empty without a record."""
    file = None if pair.training is None else folder_of(pair.training, places) / CURVES_FILE
    return read_table(file) if file is not None and file.is_file() else []


def epoch_cells(curves: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Cell]:
    """Return the median time of an epoch and the processor time of all epochs, as the mean over trainings."""

    def cell(metric: str, of_training: Callable[[list[float]], float]) -> Cell | None:
        times = [[row["value"] for row in rows if row["metric"] == metric] for rows in curves]
        values = [of_training(seconds) for seconds in times if seconds]
        if not values:
            return None
        deviation = stdev(values) if len(values) > 1 else math.nan
        return Cell(fmean(values), deviation=deviation, replicates=len(values))

    cells = {
        SECONDS_PER_EPOCH: cell("epoch_seconds", median),
        CORE_MINUTES: cell("epoch_core_seconds", lambda seconds: sum(seconds) / 60),
    }
    return {metric: found for metric, found in cells.items() if found is not None}


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read a CSV table; numbers become floats, empty cells None, texts that describe an image stay texts."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: _cell(key, text) for key, text in row.items()} for row in csv.DictReader(file)]


def read_summary(folder: Path) -> dict[str, float]:
    """Return every value of an evaluation that is not per image, ``<metric>:<class or tissue>`` included."""
    document = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    values = {**_numbers(document["summary"][-1]), **_numbers(document.get("tissue_means", {}))}
    for table, label in (("per_class", "class"), ("per_tissue", "tissue")):
        for row in document.get(table, ()):
            values |= {f"{name}{PART}{row[label]}": number for name, number in _numbers(row).items()}
    return values


def merge_rows(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Average the per-image tables of several seeds and splits, image by image.

    An image that several splits test is averaged over them; a cell that is missing in one table is that of the
    others. Texts are those of the first table that has the image.
    """
    images: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for table in tables:
        for row in table:
            images.setdefault((str(row.get("domain", "")), str(row["id"])), []).append(row)
    merged = []
    for copies in images.values():
        columns = dict.fromkeys(key for row in copies for key in row)
        merged.append(
            {
                key: copies[0].get(key) if key in TEXT_COLUMNS else _mean(row.get(key) for row in copies)
                for key in columns
            }
        )
    return merged


def dataset_cells(
    rows: Sequence[Mapping[str, Any]], summaries: Sequence[Mapping[str, float]]
) -> dict[str, Cell]:
    """Return the value of every metric of a method on a dataset.

    Metrics of single images are averaged over images, with a bootstrap interval over images or over the groups
    they belong to. What is only known of a whole evaluation (means over tissues, counts over the set) is averaged
    over the evaluations; its interval is the one of the evaluation where there is only one.

    Args:
        rows: of all images, from :func:`merge_rows`.
        summaries: of every seed and split, from :func:`read_summary`.
    """
    replicates = len(summaries)
    by_image = summarise_by_domain(rows)[-1]
    cells = {}
    for metric in dict.fromkeys(name for summary in summaries for name in summary):
        if "_ci_" in metric or metric in ("images", "skipped_images"):
            continue
        values = [summary[metric] for summary in summaries if metric in summary]
        deviation = stdev(values) if len(values) > 1 else math.nan
        if metric in by_image:
            value, low, high = (by_image[key] for key in (metric, f"{metric}_ci_low", f"{metric}_ci_high"))
        elif replicates == 1:
            name, part, of = metric.partition(PART)
            value = values[0]
            low, high = (summaries[0].get(f"{name}_ci_{end}{part}{of}", math.nan) for end in ("low", "high"))
        else:
            value, low, high = fmean(values), math.nan, math.nan
        cells[metric] = Cell(float(value), float(low), float(high), deviation, replicates)
    return cells


def first_done(evaluations: Iterable[Evaluation], places: Places) -> dict[tuple[str, str], Path]:
    """Return the folder of one finished evaluation of every method and dataset: that of the first seed."""
    found: dict[tuple[str, str], Path] = {}
    for pair in evaluations:
        key = (pair.method.name, pair.dataset.name)
        if key not in found and is_done(pair, places):
            found[key] = folder_of(pair, places)
    return found


def _cell(key: str, text: str) -> Any:
    if key in TEXT_COLUMNS:
        return text or None
    try:
        return float(text)
    except ValueError:
        return text or None


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: math.nan if value is None else float(value)
        for key, value in row.items()
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    }


def _mean(cells: Iterable[Any]) -> Any:
    """Return the mean of the numbers that are there; a text stays the first one."""
    known = [
        cell for cell in cells if cell is not None and not (isinstance(cell, float) and math.isnan(cell))
    ]
    if not known:
        return math.nan
    return fmean(known) if all(isinstance(cell, (int, float)) for cell in known) else known[0]


_NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "f1_mean_pr": "F1",
    "hd": "HD (px)",
    "hd95": "HD95 (px)",
    "aji_plus": "AJI+",
    "bpq_tissue": "bPQ",
    "mpq_tissue": "mPQ",
    "mpq": "mPQ",
    "weighted_f1": "weighted F1",
    "weighted_iou": "weighted IoU",
    "trainable_m": "trainable (M)",
    "frozen_m": "frozen (M)",
    "total_m": "parameters (M)",
    "gmacs": "GMACs",
    "images_per_second": "images/s",
    SECONDS_PER_EPOCH: "s/epoch",
    CORE_MINUTES: "core minutes",
}


@dataclass(frozen=True)
class Column:
    """A dataset and a metric."""

    dataset: str
    metric: str

    @property
    def title(self) -> str:
        """The metric as a heading."""
        name, part, of = self.metric.partition(PART)
        return f"{_NAMES.get(name, name.upper())}{f' {of}' if part else ''}"


@dataclass(frozen=True)
class Entry:
    """A cell of a finished table.

    Attributes:
        ours: what was measured; None where it was not.
        printed: what the paper prints; None where it prints nothing.
        best: whether ours is the best of its column.
    """

    ours: Cell | None
    printed: float | None
    best: bool


@dataclass(frozen=True)
class Table:
    """All values of an experiment, a row for each method.

    Attributes:
        columns: datasets and metrics.
        entries: ``{method: one entry for each column}``.
        percent: whether shares are shown in per cent, as the printed values are.
    """

    columns: tuple[Column, ...]
    entries: dict[str, tuple[Entry, ...]]
    percent: bool

    def text(self, column: Column, value: float) -> str:
        """Return a value as it is shown."""
        return f"{value:{self._digits(column)}}"

    def our_text(self, column: Column, cell: Cell) -> tuple[str, str]:
        """Return our value and its interval as they are shown, each empty where there is none."""
        if math.isnan(cell.value):
            return "", ""
        scale = 100 if self.percent and column.metric.partition(PART)[0] not in NOT_SHARES else 1
        value, low, high = (scale * number for number in (cell.value, cell.ci_low, cell.ci_high))
        if not math.isnan(low):
            return self.text(column, value), f"[{self.text(column, low)}, {self.text(column, high)}]"
        return self.text(column, value), "" if math.isnan(cell.deviation) else (
            f"± {self.text(column, scale * cell.deviation)}"
        )

    def _digits(self, column: Column) -> str:
        metric = column.metric.partition(PART)[0]
        if metric in NOT_SHARES:
            return ",.1f" if metric != "images_per_second" else ".2f"
        return ".2f" if self.percent else ".4f" if metric.endswith(("pq_tissue", "mpq")) else ".3f"


def build_table(experiment: Experiment, results: Results, printed: Printed | None) -> Table:
    """Put our values and the printed ones into one table."""
    tested = () if experiment.protocol == "cost_only" else experiment.test_metrics
    columns = [Column(dataset.name, metric) for dataset in experiment.datasets for metric in tested]
    columns += [Column(COST, metric) for metric in experiment.cost_metrics]
    entries: dict[str, list[Entry]] = {method.name: [] for method in experiment.methods}
    for column in columns:
        best = _best(experiment, results, column)
        for method in experiment.methods:
            ours = results.cells.get((method.name, column.dataset, column.metric))
            row = method.printed or method.name
            value = None if printed is None else printed.value(row, column.dataset, column.metric)
            is_best = ours is not None and best is not None and math.isclose(ours.value, best)
            entries[method.name].append(Entry(ours, value, is_best))
    return Table(tuple(columns), {name: tuple(row) for name, row in entries.items()}, experiment.percent)


def _best(experiment: Experiment, results: Results, column: Column) -> float | None:
    """Return the best value of a column with several."""
    values = [
        value
        for method in experiment.methods
        if not math.isnan(value := results.value(method.name, column.dataset, column.metric))
    ]
    if len(values) < 2:
        return None
    return min(values) if column.metric in LOWER_IS_BETTER else max(values)


def markdown(table: Table, *, transpose: bool = False) -> str:
    """Return the table with intervals, the best of each column in bold, and printed values in italics below."""
    header = ["method", *(_heading(column, table) for column in table.columns)]
    rows = [
        [name, *(_markdown_cell(table, column, entry) for column, entry in _cells(table, name))]
        for name in table.entries
    ]
    grid = [list(line) for line in zip(header, *rows, strict=True)] if transpose else [header, *rows]
    grid[0][0] = "" if transpose else "method"
    lines = ["| " + " | ".join(cells) + " |" for cells in grid]
    return "\n".join([lines[0], "|" + "---|" * len(grid[0]), *lines[1:]])


def latex(table: Table, *, caption: str, label: str, transpose: bool = False) -> str:
    """Return the table for LaTeX with booktabs; intervals small, the best in bold, printed values in italics."""
    header = ["method", *(_escaped(_heading(column, table)) for column in table.columns)]
    rows = [
        [_escaped(name), *(_latex_cell(table, column, entry) for column, entry in _cells(table, name))]
        for name in table.entries
    ]
    grid = [list(line) for line in zip(header, *rows, strict=True)] if transpose else [header, *rows]
    grid[0][0] = "" if transpose else "method"
    body = [" & ".join(cells) + r" \\" for cells in grid]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(caption)}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{l{'c' * (len(grid[0]) - 1)}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def csv_rows(table: Table, results: Results) -> list[dict[str, Any]]:
    """Return one row for each value, in full: shares as shares, whatever the tables show."""
    rows = []
    for name in table.entries:
        for column, entry in _cells(table, name):
            if entry.ours is None and entry.printed is None:
                continue
            cell = asdict(entry.ours) if entry.ours is not None else {}
            rows.append(
                {
                    "method": name,
                    "dataset": column.dataset,
                    "metric": column.metric,
                    **cell,
                    "images": results.images.get((name, column.dataset)),
                    "best": entry.best,
                    "printed": entry.printed,
                }
            )
    return rows


def paired_tests(experiment: Experiment, results: Results) -> list[dict[str, Any]]:
    """Compare the reference method with every other on the same images of each dataset.

    Metrics of whole evaluations have no values of single images and are left out.
    """
    names = [method.name for method in experiment.methods]
    reference = experiment.reference or names[0]
    tests = []
    for dataset in experiment.datasets:
        ours = results.rows.get((reference, dataset.name))
        for name in names:
            theirs = results.rows.get((name, dataset.name))
            if name == reference or not ours or not theirs:
                continue
            for metric in experiment.metrics:
                if metric in ours[0] and metric in theirs[0]:
                    found = asdict(compare(ours, theirs, metric))
                    tests.append({"dataset": dataset.name, "method": reference, "other": name, **found})
    return tests


def _cells(table: Table, name: str) -> list[tuple[Column, Entry]]:
    return list(zip(table.columns, table.entries[name], strict=True))


def _heading(column: Column, table: Table) -> str:
    several = len({other.dataset for other in table.columns}) > 1
    return f"{column.dataset} {column.title}" if several and column.dataset != COST else column.title


def _markdown_cell(table: Table, column: Column, entry: Entry) -> str:
    parts = []
    if entry.ours is not None:
        value, interval = table.our_text(column, entry.ours)
        parts += [f"**{value}**" if entry.best else value, interval]
    if entry.printed is not None:
        parts.append(f"*{table.text(column, entry.printed)}*")
    return " ".join(part for part in parts if part) or "-"


def _latex_cell(table: Table, column: Column, entry: Entry) -> str:
    parts = []
    if entry.ours is not None:
        value, interval = table.our_text(column, entry.ours)
        parts.append(rf"\textbf{{{value}}}" if entry.best else value)
        if interval:
            plain = interval.replace("± ", r"$\pm$ ")
            parts.append(rf"{{\scriptsize {plain}}}")
    if entry.printed is not None:
        parts.append(rf"\textit{{{table.text(column, entry.printed)}}}")
    return " ".join(part for part in parts if part) or "--"


def _escaped(text: str) -> str:
    special = {
        "&": r"\&",
        "%": r"\%",
        "_": r"\_",
        "#": r"\#",
        "$": r"\$",
        "+": "+",
        "~": r"\textasciitilde{}",
    }
    return "".join(special.get(character, character) for character in text)


def not_run(printed: Printed, experiment: Experiment) -> Sequence[str]:
    """Return the rows of the printed table without a method of the experiment."""
    rows = {method.printed or method.name for method in experiment.methods}
    return [row for row in printed.values if row not in rows]
