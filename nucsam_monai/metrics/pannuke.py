"""bPQ and mPQ by the PanNuke protocol: per image, then tissue by tissue, then over the folds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nucsam_monai.metrics.classes import check_class_count, match_per_class
from nucsam_monai.metrics.instance import panoptic_quality, qualities
from nucsam_monai.metrics.means import nan_mean, nan_std
from nucsam_monai.utils.errors import ConfigurationError


def binary_panoptic_quality(y: ArrayLike, y_pred: ArrayLike) -> float:
    """Return bPQ of one image, the panoptic quality of all nuclei whatever their class.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background.
        y_pred: ``(H, W)`` prediction, likewise.

    Returns:
        bPQ in [0, 1]; NaN if ``y`` has no nucleus.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.

    Source:
        Gamper et al., PanNuke Dataset Extension, Insights and Baselines, 2020, section on evaluation.
    """
    return panoptic_quality(y, y_pred).pq


def class_panoptic_quality(
    y: ArrayLike,
    y_pred: ArrayLike,
    y_classes: Mapping[int, int],
    y_pred_classes: Mapping[int, int],
    class_count: int,
) -> NDArray[np.float64]:
    """Return the panoptic quality of one image for each class on its own.

    A nucleus found with the wrong class is a miss of its class and a false positive of the other.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background.
        y_pred: ``(H, W)`` prediction, likewise.
        y_classes: ``{id in y: class id}`` with class ids from 0; ids that the map lacks are ignored.
        y_pred_classes: ``{id in y_pred: class id}``, likewise.
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
    return qualities(*match_per_class(y, y_pred, y_classes, y_pred_classes, class_count))[2]


def image_mpq(class_pq: ArrayLike) -> float:
    """Return mPQ of one image, the mean PQ of the classes that its ground truth has; NaN if it has none.

    Args:
        class_pq: ``(classes,)`` from :func:`class_panoptic_quality`.
    """
    return nan_mean(class_pq)


class PanNukeImage(NamedTuple):
    """What one image adds to the summary.

    Attributes:
        tissue: the tissue it shows.
        bpq: from :func:`binary_panoptic_quality`.
        class_pq: ``(classes,)`` from :func:`class_panoptic_quality`.
        fold: the test fold that it was predicted in; "" where there is one set only.
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
    """bPQ and mPQ of one tissue, each the mean over folds of the mean over images."""

    tissue: str
    images: int
    images_with_nuclei: int
    bpq: float
    mpq: float


class PanNukeScore(NamedTuple):
    """One quality of a whole data set, averaged in both ways that are in use.

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
    """A data set by the PanNuke protocol.

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
        class_pq=np.array([nan_mean(column) for column in class_pq.T]),
        class_pq_fold_std=np.array([nan_std(column) for column in class_pq.T]),
        folds=_names(images, "fold"),
        images=len(images),
        images_without_nuclei=sum(bool(np.isnan(image.bpq)) for image in images),
    )


_Folds = Sequence[Sequence[PanNukeImage]]


def _score(by_fold: _Folds, value: Callable[[PanNukeImage], float]) -> PanNukeScore:
    table = _tissue_table(by_fold, value)
    tissue_values = [nan_mean(column) for column in table.T]
    return PanNukeScore(
        tissue_mean=nan_mean(tissue_values),
        global_mean=nan_mean([nan_mean([value(image) for image in fold]) for fold in by_fold]),
        fold_std=nan_std([nan_mean(row) for row in table]),
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


def _class_means(fold: Sequence[PanNukeImage]) -> list[float]:
    return [nan_mean(column) for column in np.array([image.class_pq for image in fold], dtype=np.float64).T]


def _names(images: Sequence[PanNukeImage], attribute: str) -> tuple[str, ...]:
    return tuple(sorted({getattr(image, attribute) for image in images}))
