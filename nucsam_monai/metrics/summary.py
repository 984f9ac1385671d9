"""From one row per image to one row per domain, tissue or other kind of image."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nucsam_monai.metrics.bootstrap import Bootstrap
from nucsam_monai.metrics.statistics import (
    Estimate,
    Statistic,
    estimate,
    f1_mean_pr_statistic,
    interval_cells,
    mean_statistic,
    metric_columns,
    value_cells,
)

ALL_IMAGES = "all images"
TEXT_COLUMNS = ("id", "domain", "tissue", "group", "fold")
"""Columns of a per-image table that describe the image; all others are metrics."""


@dataclass(frozen=True)
class SubsetSummary:
    """The values of a set of images.

    Attributes:
        name: of the set: a domain, a tissue, or :data:`ALL_IMAGES`.
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
    """Return the values of every subset of the images, and of all images where there are several subsets.

    Args:
        rows: one mapping per image.
        by: the column that names the subset; images without a name in it are in no subset.
        statistics: of these images, in the same order.
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
