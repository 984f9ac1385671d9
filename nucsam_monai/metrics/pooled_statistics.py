"""Values that only a whole set of images has, as functions of sums over its images."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.metrics.instance import qualities
from nucsam_monai.metrics.measurement import DETECTION_PROTOCOLS
from nucsam_monai.metrics.ratios import precision_recall_f1, ratio
from nucsam_monai.metrics.statistics import Statistic, mean_statistic

_RATIOS = ("precision", "recall", "f1")


def pooled_quality_statistic(counts: NDArray[np.float64]) -> Statistic:
    """Return mPQ+, see :class:`nucsam_monai.metrics.PooledPanopticQuality`.

    Args:
        counts: ``(images, classes, 4)`` matches, false predictions, misses and summed IoU.
    """

    def mpq_plus(totals: NDArray[np.float64]) -> NDArray[np.float64]:
        pq = qualities(*np.moveaxis(totals.reshape(len(totals), -1, 4), -1, 0))[2]
        return _nan_mean(pq, axis=1)[:, None]

    return Statistic(("mpq_plus",), counts.reshape(len(counts), -1), mpq_plus)


def pooled_class_statistic(counts: NDArray[np.float64]) -> Statistic:
    """Return the pooled DQ, SQ and PQ of one class.

    Args:
        counts: ``(images, 4)`` matches, false predictions, misses and summed IoU.
    """
    return Statistic(
        ("dq_plus", "sq_plus", "pq_plus"), counts, lambda totals: np.column_stack(qualities(*totals.T))
    )


def detection_statistic(protocol: str, counts: NDArray[np.float64], kind: int = 0) -> Statistic:
    """Return precision, recall and F1 of the detection, or of one class.

    Args:
        protocol: a key of :data:`nucsam_monai.metrics.measurement.DETECTION_PROTOCOLS`.
        counts: ``(images, *shape)`` of :attr:`nucsam_monai.metrics.HovernetDetection.counts`.
        kind: 0 for detection whatever the class, ``1 + c`` for class id ``c``.
    """
    weights = DETECTION_PROTOCOLS[protocol].weights(counts)[:, kind]
    return Statistic(tuple(f"{protocol}_{name}" for name in _RATIOS), weights, precision_recall_f1)


def tissue_statistic(
    name: str, values: NDArray[np.float64], tissues: Sequence[str], folds: Sequence[str]
) -> Statistic:
    """Return the mean by tissue and the global mean, as :func:`nucsam_monai.metrics.pannuke_summary` does.

    Args:
        name: of the metric; the values are called ``<name>_tissue`` and ``<name>_global``.
        values: ``(images,)`` of the metric, NaN is left out.
        tissues: of every image.
        folds: of every image.
    """
    fold_names, tissue_names = sorted(set(folds)), sorted(set(tissues))
    shape = (len(fold_names), len(tissue_names))
    cells = [
        fold_names.index(fold) * shape[1] + tissue_names.index(tissue)
        for fold, tissue in zip(folds, tissues, strict=True)
    ]
    sums = np.zeros((len(values), shape[0] * shape[1], 2))
    sums[np.arange(len(values)), cells] = mean_statistic(name, values).sums

    def means(totals: NDArray[np.float64]) -> NDArray[np.float64]:
        total, count = np.moveaxis(totals.reshape(len(totals), *shape, 2), -1, 0)
        by_tissue = _nan_mean(_nan_mean(ratio(total, count), axis=1), axis=1)
        overall = _nan_mean(ratio(total.sum(axis=2), count.sum(axis=2)), axis=1)
        return np.column_stack((by_tissue, overall))

    return Statistic((f"{name}_tissue", f"{name}_global"), sums.reshape(len(values), -1), means)


def _nan_mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return ratio(
        np.nansum(values, axis=axis), np.count_nonzero(~np.isnan(values), axis=axis).astype(np.float64)
    )
