"""Compute the panoptic quality of each class: bPQ and mPQ by the PanNuke protocol, mPQ+ of the CoNIC challenge.

mPQ is computed image by image, averaged tissue by tissue, then over the folds; mPQ+ pools the counts of a whole
dataset first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nucsam_monai.metrics.instance import panoptic_quality, qualities
from nucsam_monai.metrics.pair import LabelPair, Labels
from nucsam_monai.metrics.statistics import nan_mean, nan_means, nan_std
from nucsam_monai.utils.errors import ConfigurationError


class ClassMatches(NamedTuple):
    """Count matches, unmatched predictions and unmatched ground truth, and sum the matched IoU, each ``(classes,)``."""

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
    pair: LabelPair, y_classes: NDArray[np.int64], y_pred_classes: NDArray[np.int64], class_count: int
) -> ClassMatches:
    """Match the instances of every class separately: same class on both sides and IoU > 0.5.

    Args:
        pair: the two label maps.
        y_classes: ``(n,)`` class id of every row of the pair's table, from 0.
        y_pred_classes: ``(m,)`` class id of every column.
        class_count: number of classes.
    """
    table, ious = pair.table, pair.table.ious()
    pair_class = y_classes[table.overlap_rows]
    matched = (ious > 0.5) & (pair_class == y_pred_classes[table.overlap_columns])
    tp = np.bincount(pair_class[matched], minlength=class_count)
    iou_sum = np.bincount(pair_class[matched], weights=ious[matched], minlength=class_count)
    return ClassMatches(
        tp=tp,
        fp=np.bincount(y_pred_classes, minlength=class_count) - tp,
        fn=np.bincount(y_classes, minlength=class_count) - tp,
        iou_sum=iou_sum.astype(np.float64),
    )


def binary_panoptic_quality(y: Labels, y_pred: ArrayLike | None = None) -> float:
    """Return bPQ of one image, the panoptic quality of all nuclei whatever their class.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.

    Returns:
        bPQ in [0, 1]; NaN if ``y`` has no nucleus.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.

    Source:
        Gamper et al., PanNuke Dataset Extension, Insights and Baselines, 2020, section on evaluation.
    """
    return panoptic_quality(y, y_pred).pq


def class_panoptic_quality(
    y: Labels,
    y_pred: ArrayLike | None,
    y_classes: Mapping[int, int],
    y_pred_classes: Mapping[int, int],
    class_count: int,
) -> NDArray[np.float64]:
    """Return the panoptic quality of one image for each class separately.

    A nucleus found with the wrong class is a miss of its class and a false positive of the other.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background; or a :class:`LabelPair`.
        y_pred: ``(H, W)`` prediction in the same format; None if ``y`` is a pair.
        y_classes: ``{id in y: class id}`` with class ids from 0; ids that the map lacks are ignored.
        y_pred_classes: ``{id in y_pred: class id}``.
        class_count: number of classes.

    Returns:
        ``(class_count,)`` PQ of each class, NaN where ``y`` has no nucleus of the class, whatever is predicted.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape, an instance has no class, or a class
            id is outside 0 to ``class_count - 1``.

    Source:
        Gamper et al., PanNuke Dataset Extension, Insights and Baselines, 2020, section on evaluation.

    Example:
        >>> class_panoptic_quality([[1, 1, 0, 2]], [[5, 5, 0, 6]], {1: 0, 2: 1}, {5: 0, 6: 2}, 3).round(3)
        array([ 1.,  0., nan])
    """
    check_class_count(class_count)
    return qualities(*_matches(LabelPair.of(y, y_pred), y_classes, y_pred_classes, class_count))[2]


def _matches(
    pair: LabelPair, y_classes: Mapping[int, int], y_pred_classes: Mapping[int, int], class_count: int
) -> ClassMatches:
    return match_per_class(
        pair,
        classes_of("y_classes", pair.table.y_ids, y_classes, class_count),
        classes_of("y_pred_classes", pair.table.y_pred_ids, y_pred_classes, class_count),
        class_count,
    )


def image_mpq(class_pq: ArrayLike) -> float:
    """Return mPQ of one image, the mean PQ of the classes that its ground truth has; NaN if it has none.

    Args:
        class_pq: ``(classes,)`` from :func:`class_panoptic_quality`.
    """
    return nan_mean(class_pq)


class PanNukeImage(NamedTuple):
    """Hold the contribution of one image to the summary.

    Attributes:
        tissue: tissue in the image.
        bpq: bPQ of the image, from :func:`binary_panoptic_quality`.
        class_pq: ``(classes,)`` from :func:`class_panoptic_quality`.
        fold: the test fold that it was predicted in; "" for a single set.
    """

    tissue: str
    bpq: float
    class_pq: NDArray[np.float64]
    fold: str = ""

    @property
    def mpq(self) -> float:
        """Mean PQ of the classes of this image."""
        return image_mpq(self.class_pq)


class TissueQuality(NamedTuple):
    """Hold bPQ and mPQ of one tissue, each the mean over folds of the mean over images."""

    tissue: str
    images: int
    images_with_nuclei: int
    bpq: float
    mpq: float


class PanNukeScore(NamedTuple):
    """Hold bPQ or mPQ of a whole dataset, averaged in both ways that papers use.

    Attributes:
        tissue_mean: the headline; mean over images within a tissue and fold, over folds, over tissues.
        global_mean: mean over the images of a fold whatever their tissue, then over folds.
        fold_std: sample standard deviation over the folds of their means over tissues.
        tissue_std: sample standard deviation over the tissues.
    """

    tissue_mean: float
    global_mean: float
    fold_std: float
    tissue_std: float


@dataclass(frozen=True)
class PanNukeSummary:
    """Summarise a dataset by the PanNuke protocol.

    Attributes:
        bpq: binary panoptic quality.
        mpq: panoptic quality over classes.
        tissues: one row per tissue, sorted by name.
        class_pq: ``(classes,)`` mean over folds of the mean over images with that class; NaN without any.
        class_pq_fold_std: ``(classes,)`` its sample standard deviation over folds; NaN with fewer than two.
        folds: names of the folds, sorted.
        images: number of images.
        images_without_nuclei: how many of them have no nucleus and are left out of every mean.
    """

    bpq: PanNukeScore
    mpq: PanNukeScore
    tissues: tuple[TissueQuality, ...]
    class_pq: NDArray[np.float64]
    class_pq_fold_std: NDArray[np.float64]
    folds: tuple[str, ...]
    images: int
    images_without_nuclei: int


def pannuke_summary(images: Sequence[PanNukeImage]) -> PanNukeSummary:
    """Average images by tissue and fold.

    NaN values, of images without a nucleus or without a class, are left out of every mean, and so are tissues
    without any nucleus. Published numbers are the tissue means; some code logs the global ones, which differ by
    one or two points, so both are given. Papers print standard deviations over folds or over tissues without
    saying which.

    Args:
        images: one entry per image.

    Raises:
        ConfigurationError: there is no image, or images differ in their number of classes.

    Source:
        Gamper et al., PanNuke Dataset Extension, Insights and Baselines, 2020, section on evaluation.
    """
    if not images:
        raise ConfigurationError("pannuke_summary: expected at least one image, found none.")
    class_counts = {np.shape(image.class_pq) for image in images}
    if len(class_counts) > 1 or len(next(iter(class_counts))) != 1:
        raise ConfigurationError(
            f"pannuke_summary: expected (classes,) qualities, equally many per image, found {class_counts}."
        )
    by_fold = [[image for image in images if image.fold == fold] for fold in _names(images, "fold")]
    class_pq = np.array([_class_means(fold) for fold in by_fold])
    return PanNukeSummary(
        bpq=_score(by_fold, lambda image: image.bpq),
        mpq=_score(by_fold, lambda image: image.mpq),
        tissues=_tissue_rows(by_fold),
        class_pq=nan_means(class_pq, axis=0),
        class_pq_fold_std=np.array([nan_std(column) for column in class_pq.T]),
        folds=_names(images, "fold"),
        images=len(images),
        images_without_nuclei=sum(bool(np.isnan(image.bpq)) for image in images),
    )


_Folds = Sequence[Sequence[PanNukeImage]]


def _score(by_fold: _Folds, value: Callable[[PanNukeImage], float]) -> PanNukeScore:
    table = _tissue_table(by_fold, value)
    tissue_values = nan_means(table, axis=0)
    return PanNukeScore(
        tissue_mean=nan_mean(tissue_values),
        global_mean=nan_mean([nan_mean([value(image) for image in fold]) for fold in by_fold]),
        fold_std=nan_std(nan_means(table, axis=1)),
        tissue_std=nan_std(tissue_values),
    )


def _tissue_table(by_fold: _Folds, value: Callable[[PanNukeImage], float]) -> NDArray[np.float64]:
    """Return the ``(folds, tissues)`` means over images."""
    tissues = _names([image for fold in by_fold for image in fold], "tissue")
    rows = []
    for fold in by_fold:
        values: dict[str, list[float]] = {tissue: [] for tissue in tissues}
        for image in fold:
            values[image.tissue].append(value(image))
        rows.append([nan_mean(values[tissue]) for tissue in tissues])
    return np.array(rows)


def _tissue_rows(by_fold: _Folds) -> tuple[TissueQuality, ...]:
    images = [image for fold in by_fold for image in fold]
    bpq, mpq = (_tissue_table(by_fold, value) for value in (lambda i: i.bpq, lambda i: i.mpq))
    rows = []
    for index, tissue in enumerate(_names(images, "tissue")):
        shown = [image for image in images if image.tissue == tissue]
        with_nuclei = sum(not np.isnan(image.bpq) for image in shown)
        values = nan_mean(bpq[:, index]), nan_mean(mpq[:, index])
        rows.append(TissueQuality(tissue, len(shown), with_nuclei, *values))
    return tuple(rows)


def _class_means(fold: Sequence[PanNukeImage]) -> NDArray[np.float64]:
    return nan_means([image.class_pq for image in fold], axis=0)


def _names(images: Sequence[PanNukeImage], attribute: str) -> tuple[str, ...]:
    return tuple(sorted({getattr(image, attribute) for image in images}))


@dataclass(frozen=True)
class PooledQuality:
    """Hold DQ, SQ and PQ of a dataset from pooled counts; arrays are ``(classes,)``.

    Attributes:
        mpq_plus: mean of ``pq`` over the classes that occur in the ground truth; NaN if none does.
        dq: detection quality of each class; NaN where the ground truth has no nucleus of it.
        sq: segmentation quality, of the same shape.
        pq: panoptic quality, of the same shape.
        counts: the pooled counts of each class.
    """

    mpq_plus: float
    dq: NDArray[np.float64]
    sq: NDArray[np.float64]
    pq: NDArray[np.float64]
    counts: ClassMatches


class PooledPanopticQuality:
    """Compute mPQ+: count the matches of each class over all images before computing any quality.

    An image without a class still adds its false positives of that class, which the mean over images (mPQ)
    leaves out. A class without a nucleus in the whole ground truth is NaN and not part of the mean; MONAI's
    ``PanopticQualityMetric``, which also pools, gives it 0.

    Args:
        class_count: number of classes; class ids go from 0 to ``class_count - 1``.

    Raises:
        ConfigurationError: ``class_count`` is below 1.

    Source:
        Graham et al., CoNIC Challenge, Medical Image Analysis 2024, section on the evaluation metric.

    Example:
        >>> metric = PooledPanopticQuality(class_count=2)
        >>> metric.update([[1, 1, 0, 2]], [[5, 5, 0, 0]], {1: 0, 2: 1}, {5: 0})
        >>> metric.result().counts.fn
        array([0, 1])
    """

    def __init__(self, class_count: int) -> None:
        check_class_count(class_count)
        self.class_count = class_count
        zeros = np.zeros(class_count, np.int64)
        self._counts = ClassMatches(zeros, zeros, zeros, zeros.astype(np.float64))

    def update(
        self,
        y: Labels,
        y_pred: ArrayLike | None,
        y_classes: Mapping[int, int],
        y_pred_classes: Mapping[int, int],
    ) -> None:
        """Add one image; see :func:`nucsam_monai.metrics.class_panoptic_quality` for the arguments.

        Raises:
            ConfigurationError: the maps are not two label maps of one shape, an instance has no class, or a
                class id is out of range.
        """
        found = _matches(LabelPair.of(y, y_pred), y_classes, y_pred_classes, self.class_count)
        self._counts = self._counts.plus(found)

    def merge(self, other: "PooledPanopticQuality") -> None:
        """Add the images of another accumulator.

        Raises:
            ConfigurationError: the other has another number of classes.
        """
        if other.class_count != self.class_count:
            raise ConfigurationError(
                f"cannot merge counts of {other.class_count} classes into counts of {self.class_count}."
            )
        self._counts = self._counts.plus(other._counts)

    def result(self) -> PooledQuality:
        """Return the qualities of all images so far."""
        dq, sq, pq = qualities(*self._counts)
        return PooledQuality(float(mpq_plus(np.stack(self._counts, axis=-1))), dq, sq, pq, self._counts)


def mpq_plus(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return mPQ+ ``(...)`` of pooled counts, the mean PQ of the classes that occur in the ground truth.

    Args:
        totals: ``(..., classes, 4)`` matches, false predictions, misses and summed IoU.
    """
    return nan_means(qualities(*np.moveaxis(totals, -1, 0))[2], axis=-1)


def classes_of(
    name: str, ids: NDArray[Any], classes: Mapping[int, int], class_count: int
) -> NDArray[np.int64]:
    """Return the class id of every instance id.

    Args:
        name: how error messages name the mapping.
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
        name: how error messages name the values.
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
