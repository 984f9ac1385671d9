"""From the files of the evaluations to one value for each method, dataset and metric."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from nucsam_monai.apps.experiments.description import COST_METRICS, Experiment
from nucsam_monai.apps.experiments.grid import Evaluation, Grid
from nucsam_monai.apps.experiments.places import Places
from nucsam_monai.apps.experiments.steps import folder_of, is_done
from nucsam_monai.metrics.summary import TEXT_COLUMNS, summarise_by_domain

COST = "cost"
"""What tables call the dataset of parameters, operations and speed."""

LOWER_IS_BETTER = ("hd", "hd95", "trainable_m", "frozen_m", "total_m", "gmacs")
NOT_SHARES = ("hd", "hd95", *COST_METRICS)
"""Metrics that are no share of one, so that per cent make no sense."""

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
