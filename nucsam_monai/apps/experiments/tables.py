"""Tables of an experiment as Markdown, CSV and LaTeX."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nucsam_monai.apps.experiments.description import Experiment
from nucsam_monai.apps.experiments.printed import Printed
from nucsam_monai.apps.experiments.results import (
    COST,
    LOWER_IS_BETTER,
    NOT_SHARES,
    PART,
    Cell,
    Results,
)
from nucsam_monai.metrics import compare

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
    """Return the rows of the printed table that no method of the experiment stands beside."""
    rows = {method.printed or method.name for method in experiment.methods}
    return [row for row in printed.values if row not in rows]
