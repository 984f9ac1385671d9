"""Classes of instances, and what matches within each class."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nucsam_monai.metrics.contingency import ContingencyTable, contingency_table
from nucsam_monai.utils.errors import ConfigurationError


class ClassMatches(NamedTuple):
    """Matches, unmatched predictions, unmatched ground truth and sums of matched IoU, each ``(classes,)``."""

    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    iou_sum: NDArray[np.float64]

    def plus(self, other: "ClassMatches") -> "ClassMatches":
        """Return the sums of both counts."""
        return ClassMatches(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou_sum + other.iou_sum
        )


def match_per_class(
    y: ArrayLike,
    y_pred: ArrayLike,
    y_classes: Mapping[int, int],
    y_pred_classes: Mapping[int, int],
    class_count: int,
) -> ClassMatches:
    """Match the instances of every class on its own: same class on both sides and IoU > 0.5.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background.
        y_pred: ``(H, W)`` prediction, likewise.
        y_classes: ``{id in y: class id}`` with class ids from 0; ids that the map lacks are ignored.
        y_pred_classes: ``{id in y_pred: class id}``, likewise.
        class_count: number of classes.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape, an instance has no class, or a class
            id is outside 0 to ``class_count - 1``.
    """
    table = contingency_table(y, y_pred)
    row_class = classes_of("y_classes", table.y_ids, y_classes, class_count)
    column_class = classes_of("y_pred_classes", table.y_pred_ids, y_pred_classes, class_count)
    return _count_matches(table, row_class, column_class, class_count)


def _count_matches(
    table: ContingencyTable, row_class: NDArray[np.int64], column_class: NDArray[np.int64], class_count: int
) -> ClassMatches:
    ious = table.ious()
    pair_class = row_class[table.overlap_rows]
    matched = (ious > 0.5) & (pair_class == column_class[table.overlap_columns])
    tp = np.bincount(pair_class[matched], minlength=class_count)
    iou_sum = np.bincount(pair_class[matched], weights=ious[matched], minlength=class_count)
    return ClassMatches(
        tp=tp,
        fp=np.bincount(column_class, minlength=class_count) - tp,
        fn=np.bincount(row_class, minlength=class_count) - tp,
        iou_sum=iou_sum.astype(np.float64),
    )


def classes_of(
    name: str, ids: NDArray[Any], classes: Mapping[int, int], class_count: int
) -> NDArray[np.int64]:
    """Return the class id of every instance id.

    Args:
        name: what an error calls the mapping.
        ids: ``(n,)`` instance ids.
        classes: ``{instance id: class id}`` with at least these ids.
        class_count: class ids go from 0 to ``class_count - 1``.

    Raises:
        ConfigurationError: an id has no class, or a class id is outside the range.
    """
    listed = ids.tolist()
    missing = [label for label in listed if label not in classes]
    if missing:
        raise ConfigurationError(
            f"{name}: {len(missing)} of {len(listed)} instances have no class, for example {missing[:5]}. "
            "Give every id of the label map a class."
        )
    return as_class_ids(name, [classes[label] for label in listed], class_count)


def as_class_ids(name: str, values: ArrayLike, class_count: int) -> NDArray[np.int64]:
    """Return ``(n,)`` int64 class ids.

    Args:
        name: what an error calls the values.
        values: ``(n,)`` integers.
        class_count: class ids go from 0 to ``class_count - 1``.

    Raises:
        ConfigurationError: the values are not integers or outside the range.
    """
    found = np.asarray(values)
    if not found.size:
        return np.zeros(0, np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ConfigurationError(
            f"{name}: expected (n,) integer class ids, found shape {found.shape} of {found.dtype}."
        )
    outside = np.unique(found[(found < 0) | (found >= class_count)])
    if outside.size:
        raise ConfigurationError(
            f"{name}: found class ids {outside[:5].tolist()}, expected 0 to {class_count - 1}. "
            "Class ids index the class names from 0; background has none."
        )
    return found.astype(np.int64)


def check_class_count(class_count: int) -> None:
    """Refuse a number of classes below 1.

    Raises:
        ConfigurationError: ``class_count`` is below 1.
    """
    if class_count < 1:
        raise ConfigurationError(f"class_count: expected at least 1, found {class_count}.")
