"""Draw the figures of an experiment: metrics, costs, curves, segmented images and confusions of classes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.description import Experiment
from experiments.steps import LABEL_MAPS
from experiments.tables import COST, NOT_SHARES, PART, Column, Results
from nucsam_monai.data.label_files import read_classes, read_instances
from nucsam_monai.io import overlay_image, read_image, read_label_map
from nucsam_monai.io.overlay import FALSE_POSITIVE, MISSED, TRUE_POSITIVE
from nucsam_monai.metrics import contingency_table, matched_ids
from nucsam_monai.utils.files import atomic_path

Curve = Sequence[tuple[float, float]]
"""Points ``(epoch, value)`` of a training."""

_DPI = 120
_PANEL_WIDTH, _PANEL_HEIGHT = 4.2, 3.4
_PANELS_IN_A_ROW = 3
_SHEET_PANEL = 2.6  # inches
_SHEET_DPI = 110
_ID_LENGTH = 24  # characters of an image's name that fit above it


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
    # A figure without pyplot: no window system is needed, and threads do not share it.
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


def label_map_of(folder: Path, item: Mapping[str, str]) -> Path:
    """Return where an evaluation in ``folder`` keeps the predicted label map of an image."""
    return folder / LABEL_MAPS / f"{item['domain']}_{item['id']}.tif"


def qualitative_sheet(
    items: Sequence[Mapping[str, str]], evaluations: Mapping[str, Path], path: Path
) -> None:
    """Draw the first images of a dataset: image, ground truth, and the answer of every method.

    Nuclei that are found with IoU > 0.5 are outlined in blue, false positives in orange, missed nuclei in yellow.

    Args:
        items: of the dataset.
        evaluations: folder of the evaluation of every method.
        path: the PNG file.
    """
    rows, columns = len(items), 2 + len(evaluations)
    figure = Figure(figsize=(_SHEET_PANEL * columns, _SHEET_PANEL * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for row, item in zip(panels, items, strict=True):
        image, true = read_image(item["image"]), read_instances(item["instances"])
        _show(row[0], image, item["id"][:_ID_LENGTH])
        truth = np.full((len(np.unique(true[true > 0])), 3), TRUE_POSITIVE, dtype=np.uint8)
        _show(row[1], overlay_image(image, true, colours=truth), f"ground truth\n{len(truth)} nuclei")
        for axes, (name, folder) in zip(row[2:], evaluations.items(), strict=True):
            picture, found = outcome_picture(image, true, read_label_map(label_map_of(folder, item)))
            _show(axes, picture, f"{name}\n{found}")
    figure.supxlabel("blue: found (IoU > 0.5), orange: false positive, yellow: missed", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_SHEET_DPI)


def outcome_picture(
    image: NDArray[np.uint8], true: NDArray[np.int32], predicted: NDArray[np.integer]
) -> tuple[NDArray[np.uint8], str]:
    """Outline found nuclei, false positives and missed nuclei.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        true: ``(H, W)`` label map.
        predicted: ``(H, W)`` label map.

    Returns:
        ``(H, W, 3)`` uint8, and the counts in words.
    """
    found_true, found_predicted = matched_ids(true, predicted)
    missed = np.where(np.isin(true, list(found_true)), 0, true)
    picture = overlay_image(image, missed, colours=_colours(missed, MISSED))
    ids = np.unique(predicted[predicted > 0])
    is_found = np.isin(ids, list(found_predicted))
    colours = np.where(is_found[:, None], TRUE_POSITIVE, FALSE_POSITIVE).astype(np.uint8)
    picture = overlay_image(picture, predicted, colours=colours)
    missed_count = len(np.unique(missed[missed > 0]))
    return picture, f"{is_found.sum()} found, {(~is_found).sum()} false, {missed_count} missed"


def confusion_matrix(
    items: Sequence[Mapping[str, str]], folder: Path, class_names: Sequence[str]
) -> NDArray[np.int64]:
    """Count which classes a method took for which.

    Args:
        items: of the dataset, with classes.
        folder: of the evaluation; images without a file of classes are left out.
        class_names: names of the classes.

    Returns:
        ``(classes + 1, classes + 1)``: rows are true classes, the last row false positives; columns are predicted
        classes, the last column missed nuclei. Nuclei are pairs above an IoU of 0.5.
    """
    count = len(class_names)
    matrix = np.zeros((count + 1, count + 1), dtype=np.int64)
    for item in items:
        path = label_map_of(folder, item)
        if "classes" not in item or not path.with_suffix(".json").is_file():
            continue
        true_classes, classes = read_classes(item["classes"]), read_classes(path.with_suffix(".json"))
        table = contingency_table(read_instances(item["instances"]), read_label_map(path))
        pairs = table.ious() > 0.5
        rows, columns = table.overlap_rows[pairs], table.overlap_columns[pairs]
        for true, predicted in zip(table.y_ids[rows], table.y_pred_ids[columns], strict=True):
            matrix[true_classes[int(true)], classes[int(predicted)]] += 1
        for true in np.delete(table.y_ids, rows):
            matrix[true_classes[int(true)], count] += 1
        for predicted in np.delete(table.y_pred_ids, columns):
            matrix[count, classes[int(predicted)]] += 1
    return matrix


def plot_confusion(matrix: NDArray[np.int64], class_names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, coloured by the share of its row."""
    figure = Figure(figsize=(1.2 + 0.8 * len(matrix), 1 + 0.7 * len(matrix)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(matrix):
        axes.text(column, row, str(number), ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(matrix)), [*class_names, "missed"], rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(matrix)), [*class_names, "false positive"], fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_SHEET_DPI)


def _colours(instances: NDArray[np.integer], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((len(np.unique(instances[instances > 0])), 3), colour, dtype=np.uint8)


def _show(axes: Axes, picture: NDArray[np.uint8], title: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize=7)
    axes.set_axis_off()
