"""Figures of an experiment."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nucsam_monai.apps.experiments.description import Experiment
from nucsam_monai.apps.experiments.results import COST, NOT_SHARES, PART, Results
from nucsam_monai.apps.experiments.tables import Column
from nucsam_monai.utils.files import atomic_path

Curve = Sequence[tuple[float, float]]
"""Points ``(epoch, value)`` of a training."""

_DPI = 120
_PANEL_WIDTH, _PANEL_HEIGHT = 4.2, 3.4
_PANELS_IN_A_ROW = 3


def plot_all(
    experiment: Experiment, results: Results, curves: Mapping[str, Curve], folder: Path
) -> list[Path]:
    """Draw every figure that there is data for.

    Args:
        experiment: the experiment.
        results: its values.
        curves: validation Dice of the first training of each method, by epoch.
        folder: where the PNG files go.

    Returns:
        The files: ``bars.png`` (every dataset), ``sweep.png`` (values along the experiment's sweep),
        ``convergence.png`` (validation metric by epoch), ``parameters.png`` and ``speed.png`` (the main metric
        against trainable parameters and seconds per image).
    """
    figures = {
        "bars.png": bars(experiment, results),
        "sweep.png": sweep(experiment, results) if experiment.sweep else None,
        "convergence.png": convergence(curves),
        "parameters.png": against_cost(experiment, results, "trainable_m", "trainable parameters (millions)"),
        "speed.png": against_cost(experiment, results, "images_per_second", "seconds per image"),
    }
    written = []
    for name, figure in figures.items():
        path = folder / name
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=_DPI)
        written.append(path)
    return written


def bars(experiment: Experiment, results: Results) -> Figure | None:
    """Draw a panel for each metric, a group for each dataset and a bar with its interval for each method."""
    metrics = [name for name in _shares(experiment) if PART not in name]
    datasets = [dataset.name for dataset in experiment.datasets]
    methods = [method.name for method in experiment.methods]
    measured = [metric for metric in metrics if any(key[2] == metric for key in results.cells)]
    if not measured:
        return None
    figure, panels = _panels(len(measured), width=max(_PANEL_WIDTH, 0.2 * len(methods) * len(datasets)))
    width = 0.8 / len(methods)
    for axes, metric in zip(panels, measured, strict=True):
        for index, method in enumerate(methods):
            cells = [results.cells.get((method, dataset, metric)) for dataset in datasets]
            places = [group + (index - (len(methods) - 1) / 2) * width for group in range(len(datasets))]
            heights = [math.nan if cell is None else cell.value for cell in cells]
            below = [
                0 if cell is None or math.isnan(cell.ci_low) else cell.value - cell.ci_low for cell in cells
            ]
            above = [
                0 if cell is None or math.isnan(cell.ci_high) else cell.ci_high - cell.value for cell in cells
            ]
            axes.bar(places, heights, width, yerr=[below, above], capsize=2, label=method)
        axes.set_xticks(range(len(datasets)), datasets, rotation=20, ha="right")
        axes.set_title(Column(COST, metric).title)
        axes.grid(axis="y", alpha=0.3)
    _legend(figure, panels[0])
    return figure


def sweep(experiment: Experiment, results: Results) -> Figure | None:
    """Draw every metric of every dataset along the experiment's sweep (UN-SAM, Figure 5)."""
    points = sorted((method.x, method.name) for method in experiment.methods if method.x is not None)
    metrics = experiment.test_metrics
    if len(points) < 2 or not results.cells:
        return None
    figure, panels = _panels(len(metrics))
    for axes, metric in zip(panels, metrics, strict=True):
        for dataset in experiment.datasets:
            values = [results.value(name, dataset.name, metric) for _, name in points]
            axes.plot([x for x, _ in points], values, marker="o", label=dataset.name)
        axes.set(xlabel=experiment.sweep, title=Column(COST, metric).title)
        axes.grid(alpha=0.3)
    _legend(figure, panels[0])
    return figure


def convergence(curves: Mapping[str, Curve]) -> Figure | None:
    """Draw the validation metric by epoch (SAC, Figure 4)."""
    drawn = {label: curve for label, curve in curves.items() if curve}
    if not drawn:
        return None
    figure, (axes,) = _panels(1, width=6)
    for label, curve in drawn.items():
        axes.plot([epoch for epoch, _ in curve], [value for _, value in curve], marker=".", label=label)
    axes.set(xlabel="epoch", ylabel="validation Dice or IoU")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def against_cost(experiment: Experiment, results: Results, cost: str, label: str) -> Figure | None:
    """Draw the experiment's main metric, averaged over its datasets, against what a method costs."""
    metric = next(iter(_shares(experiment)), None)
    points = []
    for method in experiment.methods:
        values = [
            value
            for dataset in experiment.datasets
            if metric and not math.isnan(value := results.value(method.name, dataset.name, metric))
        ]
        price = results.value(method.name, COST, cost)
        if values and not math.isnan(price):
            points.append(
                (method.name, price if cost == "trainable_m" else 1 / price, sum(values) / len(values))
            )
    if not points or metric is None:
        return None
    figure, (axes,) = _panels(1, width=6)
    for name, price, value in points:
        axes.scatter([price], [value])
        axes.annotate(name, (price, value), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set(xlabel=label, ylabel=Column(COST, metric).title)
    axes.grid(alpha=0.3)
    return figure


def _shares(experiment: Experiment) -> list[str]:
    """Return the metrics with PQ, where it is one of them, first."""
    names = [name for name in experiment.metrics if name.partition(PART)[0] not in NOT_SHARES]
    return sorted(names, key=lambda name: name not in ("pq", "mpq_tissue"))


def _panels(count: int, width: float = _PANEL_WIDTH) -> tuple[Figure, list[Axes]]:
    # A figure without pyplot: no window system is asked for, and threads do not share it.
    with mpl.rc_context({"font.size": 8}):
        columns, rows = min(count, _PANELS_IN_A_ROW), -(-count // _PANELS_IN_A_ROW)
        figure = Figure(figsize=(width * columns, _PANEL_HEIGHT * rows), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for unused in panels[count:]:
            unused.set_axis_off()
        return figure, panels[:count]


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, max(1, len(labels))), fontsize=7)
