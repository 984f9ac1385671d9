"""What the methods found on the same images, and which classes they take for which."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nucsam_monai.apps.experiments.steps import LABEL_MAPS
from nucsam_monai.data.label_files import read_classes, read_instances
from nucsam_monai.io import overlay_image, read_image, read_label_map
from nucsam_monai.io.overlay import FALSE_POSITIVE, MISSED, TRUE_POSITIVE
from nucsam_monai.metrics import contingency_table, matched_ids
from nucsam_monai.utils.files import atomic_path

_PANEL = 2.6  # inches
_DPI = 110
_ID_LENGTH = 24  # characters of an image's name that fit above it


def label_map_of(folder: Path, item: Mapping[str, str]) -> Path:
    """Return where an evaluation in ``folder`` keeps the predicted label map of an image."""
    return folder / LABEL_MAPS / f"{item['domain']}_{item['id']}.tif"


def qualitative_sheet(
    items: Sequence[Mapping[str, str]], evaluations: Mapping[str, Path], path: Path
) -> None:
    """Draw the first images of a dataset: image, ground truth, and the answer of every method.

    Nuclei that are found with IoU > 0.5 are outlined blue, invented ones orange, missed ones yellow.

    Args:
        items: of the dataset.
        evaluations: folder of the evaluation of every method.
        path: the PNG file.
    """
    rows, columns = len(items), 2 + len(evaluations)
    figure = Figure(figsize=(_PANEL * columns, _PANEL * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for row, item in zip(panels, items, strict=True):
        image, true = read_image(item["image"]), read_instances(item["instances"])
        _show(row[0], image, item["id"][:_ID_LENGTH])
        truth = np.full((len(np.unique(true[true > 0])), 3), TRUE_POSITIVE, dtype=np.uint8)
        _show(row[1], overlay_image(image, true, colours=truth), f"ground truth\n{len(truth)} nuclei")
        for axes, (name, folder) in zip(row[2:], evaluations.items(), strict=True):
            picture, found = outcome_picture(image, true, read_label_map(label_map_of(folder, item)))
            _show(axes, picture, f"{name}\n{found}")
    figure.supxlabel("blue: found (IoU > 0.5), orange: invented, yellow: missed", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DPI)


def outcome_picture(
    image: NDArray[np.uint8], true: NDArray[np.int32], predicted: NDArray[np.integer]
) -> tuple[NDArray[np.uint8], str]:
    """Outline what was found, invented and missed.

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
    return picture, f"{is_found.sum()} found, {(~is_found).sum()} invented, {missed_count} missed"


def confusion_matrix(
    items: Sequence[Mapping[str, str]], folder: Path, class_names: Sequence[str]
) -> NDArray[np.int64]:
    """Count which classes a method took for which.

    Args:
        items: of the dataset, with classes.
        folder: of the evaluation; images without a file of classes are left out.
        class_names: names of the classes.

    Returns:
        ``(classes + 1, classes + 1)``: rows are true classes, the last row invented nuclei; columns are predicted
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
    axes.set_yticks(range(len(matrix)), [*class_names, "invented"], fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DPI)


def _colours(instances: NDArray[np.integer], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((len(np.unique(instances[instances > 0])), 3), colour, dtype=np.uint8)


def _show(axes: Axes, picture: NDArray[np.uint8], title: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize=7)
    axes.set_axis_off()
