"""Summarise one row per image: a row per domain or tissue, values of the whole dataset, and their report."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.metrics.classes import mpq_plus
from nucsam_monai.metrics.instance import qualities
from nucsam_monai.metrics.measurement import DETECTION_PROTOCOLS, EvaluationSettings
from nucsam_monai.metrics.statistics import (
    Bootstrap,
    Estimate,
    Statistic,
    estimate,
    f1_mean_pr_statistic,
    interval_cells,
    mean_statistic,
    metric_columns,
    nan_means,
    precision_recall_f1,
    ratio,
    value_cells,
)

ALL_IMAGES = "all images"
TEXT_COLUMNS = ("id", "domain", "tissue", "group", "fold")
"""Columns of a per-image table that describe the image; all others are metrics."""


@dataclass(frozen=True)
class SubsetSummary:
    """Hold the metrics of a set of images.

    Attributes:
        name: name of the set: a domain, a tissue, or :data:`ALL_IMAGES`.
        images: how many images it holds.
        skipped_images: images without a value in the per-image metric that most images lack, for example AJI,
            which images without nuclei don't have.
        estimates: value and confidence interval of every metric.
    """

    name: str
    images: int
    skipped_images: int
    estimates: Mapping[str, Estimate]

    def to_row(self, label: str) -> dict[str, Any]:
        """Return one row of a table: name, images, values, skipped images, then the intervals' bounds.

        Args:
            label: the name's column.
        """
        return {
            label: self.name,
            "images": self.images,
            **value_cells(self.estimates),
            "skipped_images": self.skipped_images,
            **interval_cells(self.estimates),
        }


@dataclass(frozen=True)
class ClassSummary:
    """Hold the metrics of one class.

    Attributes:
        name: name of the class.
        images: images whose ground truth has a nucleus of the class.
        estimates: ``pq`` is the mean over these images, ``dq_plus``, ``sq_plus`` and ``pq_plus`` are pooled over
            all images, ``hovernet_*`` and ``greedy_*`` are the classification by either protocol.
    """

    name: str
    images: int
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True)
class SkippedImages:
    """Count the images without a value of a metric, which are left out of its mean."""

    metric: str
    images: int
    reason: str


@dataclass(frozen=True)
class DatasetEvaluation:
    """Hold the result of an evaluation of a whole dataset.

    Attributes:
        settings: metrics that were measured, with their options.
        bootstrap: how the confidence intervals were computed.
        unit: ``"image"`` or ``"group"``: what the bootstrap draws as a whole.
        units: how many there are.
        per_image: one row per image: ``id``, where known ``domain``, ``tissue``, ``group`` and ``fold``, and every
            per-image metric (NaN where the image has no value).
        summary: one entry per domain and, of several, one of all images.
        per_tissue: one entry per tissue and, of several, one of all images; empty without tissues.
        per_class: one entry per class; empty without classes.
        tissue_means: ``bpq_tissue`` (mean over images of a tissue, over folds, over tissues: the headline of
            PanNuke), ``bpq_global`` (mean over all images of a fold, over folds), and the same of ``mpq`` where
            there are classes; empty without tissues.
        skipped: which metrics lack images, how many and why.
    """

    settings: EvaluationSettings
    bootstrap: Bootstrap
    unit: str
    units: int
    per_image: tuple[Mapping[str, Any], ...]
    summary: tuple[SubsetSummary, ...]
    per_tissue: tuple[SubsetSummary, ...]
    per_class: tuple[ClassSummary, ...]
    tissue_means: Mapping[str, Estimate]
    skipped: tuple[SkippedImages, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain mappings, lists, texts and numbers, ready for tables and JSON.

        Every estimate becomes three cells: ``<metric>``, ``<metric>_ci_low`` and ``<metric>_ci_high``.
        """
        return {
            "class_names": list(self.settings.class_names),
            "radius_px": self.settings.radius_px,
            "bootstrap": {**asdict(self.bootstrap), "unit": self.unit, "units": self.units},
            "per_image": [dict(row) for row in self.per_image],
            "summary": [subset.to_row("domain") for subset in self.summary],
            "per_tissue": [subset.to_row("tissue") for subset in self.per_tissue],
            "per_class": [
                {
                    "class": entry.name,
                    "images": entry.images,
                    **value_cells(entry.estimates),
                    **interval_cells(entry.estimates),
                }
                for entry in self.per_class
            ],
            "tissue_means": {**value_cells(self.tissue_means), **interval_cells(self.tissue_means)},
            "skipped": [asdict(entry) for entry in self.skipped],
        }


def summarise_by_domain(
    rows: Sequence[Mapping[str, Any]], bootstrap: Bootstrap | None = None
) -> list[dict[str, Any]]:
    """Average the metrics of every domain over its images, and of all images together.

    NaN values (AJI and PQ of images without nuclei) are left out of the means; ``skipped_images`` counts the
    images for which that happened. ``f1_mean_pr`` is the F1 of the mean precision and recall. Every metric has
    a bootstrap confidence interval ``<metric>_ci_low`` to ``<metric>_ci_high`` over images, or over groups where
    the images have a ``group``.

    Args:
        rows: one mapping per image with ``id``, ``domain``, numbers and perhaps ``group``.
        bootstrap: how intervals are computed; 95 % from 2000 resamples by default.

    Returns:
        One row per domain in order of appearance, then, of several domains, one for all images.
    """
    summaries = summarise(rows, "domain", table_statistics(rows), bootstrap or Bootstrap())
    return [summary.to_row("domain") for summary in summaries]


def table_statistics(rows: Sequence[Mapping[str, Any]]) -> list[Statistic]:
    """Return the mean of every metric of a per-image table, and F1 of mean precision and recall where both are."""
    columns = metric_columns(rows, TEXT_COLUMNS)
    statistics = [mean_statistic(name, values) for name, values in columns.items()]
    if {"precision", "recall"} <= columns.keys():
        statistics.append(f1_mean_pr_statistic(columns["precision"], columns["recall"]))
    return statistics


def summarise(
    rows: Sequence[Mapping[str, Any]], by: str, statistics: Sequence[Statistic], bootstrap: Bootstrap
) -> list[SubsetSummary]:
    """Return the values of every subset of the images, and of all images if there are several subsets.

    Args:
        rows: one mapping per image.
        by: the column that names the subset; images without a name in it are in no subset.
        statistics: statistics of these images, in the same order.
        bootstrap: how intervals are computed.
    """
    columns = metric_columns(rows, TEXT_COLUMNS)
    units = resampling_units(rows)
    subsets: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        if row.get(by) is not None:
            subsets.setdefault(str(row[by]), []).append(position)
    if len(subsets) > 1:
        subsets[ALL_IMAGES] = list(range(len(rows)))
    return [
        SubsetSummary(
            name=name,
            images=len(positions),
            skipped_images=max(
                (int(np.isnan(values[positions]).sum()) for values in columns.values()), default=0
            ),
            estimates=estimate(
                [statistic.of_images(positions) for statistic in statistics],
                [units[position] for position in positions],
                bootstrap,
            ),
        )
        for name, positions in subsets.items()
    ]


def resampling_units(rows: Sequence[Mapping[str, Any]]) -> list[Hashable]:
    """Return what the bootstrap draws as a whole: an image's group where it has one, else the image.

    Groups of two domains are never the same, whatever their names are.
    """
    return [
        (str(row.get("domain")), "group", str(row["group"]), "")
        if row.get("group") is not None
        else (str(row.get("domain")), "image", str(row["id"]), position)
        for position, row in enumerate(rows)
    ]


def pooled_quality_statistic(counts: NDArray[np.float64]) -> Statistic:
    """Return mPQ+, see :class:`nucsam_monai.metrics.PooledPanopticQuality`.

    Args:
        counts: ``(images, classes, 4)`` matches, false predictions, misses and summed IoU.
    """
    return Statistic(
        ("mpq_plus",),
        counts.reshape(len(counts), -1),
        lambda totals: mpq_plus(totals.reshape(len(totals), -1, 4))[:, None],
    )


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
    return Statistic(
        tuple(f"{protocol}_{name}" for name in ("precision", "recall", "f1")), weights, precision_recall_f1
    )


def tissue_statistic(
    name: str, values: NDArray[np.float64], tissues: Sequence[str], folds: Sequence[str]
) -> Statistic:
    """Return the mean by tissue and the global mean, as :func:`nucsam_monai.metrics.pannuke_summary` does.

    Args:
        name: name of the metric; the values are called ``<name>_tissue`` and ``<name>_global``.
        values: ``(images,)`` of the metric, NaN is left out.
        tissues: tissue of every image.
        folds: fold of every image.
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
        by_tissue = nan_means(nan_means(ratio(total, count), axis=1), axis=1)
        overall = nan_means(ratio(total.sum(axis=2), count.sum(axis=2)), axis=1)
        return np.column_stack((by_tissue, overall))

    return Statistic((f"{name}_tissue", f"{name}_global"), sums.reshape(len(values), -1), means)
