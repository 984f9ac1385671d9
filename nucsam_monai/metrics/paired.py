"""Test whether one method is better than another on the same images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.metrics.statistics import Bootstrap, estimate, mean_statistic
from nucsam_monai.metrics.summary import resampling_units
from nucsam_monai.utils.errors import ConfigurationError

_NAMED_IDS = 3


@dataclass(frozen=True)
class PairedComparison:
    """Hold the difference of a metric between two evaluations, A minus B, of the same images.

    Attributes:
        metric: name of the metric.
        pairs: pairs that were tested: images, or groups where the images have groups.
        unit: ``"image"`` or ``"group"``.
        skipped_images: images without a value in A or in B.
        ties: pairs whose difference is 0.
        mean_a: mean over the pairs of A's values.
        mean_b: mean over the pairs of B's values.
        mean_difference: ``mean_a - mean_b``.
        ci_low: lower bound of the bootstrap interval of the mean difference; NaN for fewer than two pairs.
        ci_high: upper bound.
        wilcoxon_p: two-sided p of the Wilcoxon signed-rank test; NaN for fewer than two pairs.
        t_p: two-sided p of the paired t-test; NaN for fewer than two pairs.
    """

    metric: str
    pairs: int
    unit: str
    skipped_images: int
    ties: int
    mean_a: float
    mean_b: float
    mean_difference: float
    ci_low: float
    ci_high: float
    wilcoxon_p: float
    t_p: float


def compare(
    rows_a: Sequence[Mapping[str, Any]],
    rows_b: Sequence[Mapping[str, Any]],
    metric: str,
    bootstrap: Bootstrap | None = None,
) -> PairedComparison:
    """Test whether a per-image metric differs between two evaluations of the same images.

    Two tests are reported. Per-image scores of segmentation are bounded, skewed and full of outliers, so the
    Wilcoxon signed-rank test, which uses only the signs and ranks of the differences, is the one to rely on. The
    paired t-test asks for the mean difference; it is right with many pairs or if the differences are
    roughly normal, and is given because published p-values are often of this kind. Ties (differences of exactly 0)
    are dropped by Wilcoxon; where all pairs tie, both p-values are 1.

    Images of one slide or patient resemble each other and are not independent pairs. Where the images have a
    ``group``, the values of each group are therefore averaged first and the groups are the pairs. A p-value says
    nothing about the size of a difference: report the difference with its interval too.

    Args:
        rows_a: per-image table of the first evaluation, for example ``DatasetEvaluation.per_image``: ``id``,
            metrics and perhaps ``domain`` and ``group``.
        rows_b: per-image table of the second evaluation. Images are paired by domain and id, in any order.
        metric: a column of both tables. Images where either value is NaN are skipped.
        bootstrap: how the interval of the mean difference is computed.

    Raises:
        ConfigurationError: the tables are of different images, an image occurs twice, or a table lacks the
            metric.

    Source:
        Wilcoxon, Individual Comparisons by Ranking Methods, Biometrics Bulletin 1945.

    Example:
        >>> rows = [{"id": str(i), "pq": value} for i, value in enumerate((0.5, 0.6, 0.9))]
        >>> compare(rows, rows, "pq").wilcoxon_p
        1.0
    """
    by_key_a, by_key_b = _by_image(rows_a, "A", metric), _by_image(rows_b, "B", metric)
    _check_same_images(by_key_a, by_key_b)
    keys = sorted(by_key_a)
    values = np.array([[_value(by_key[key], metric) for by_key in (by_key_a, by_key_b)] for key in keys])
    measured = ~np.isnan(values).any(axis=1) if keys else np.zeros(0, dtype=bool)
    units = [
        unit
        for unit, valid in zip(resampling_units([by_key_a[key] for key in keys]), measured, strict=True)
        if valid
    ]
    ranks = {unit: rank for rank, unit in enumerate(dict.fromkeys(units))}
    pairs = _unit_means(
        values[measured], np.array([ranks[unit] for unit in units], dtype=np.int64), len(ranks)
    )
    difference = pairs[:, 0] - pairs[:, 1]
    interval = estimate([mean_statistic(metric, difference)], range(len(pairs)), bootstrap or Bootstrap())[
        metric
    ]
    wilcoxon_p, t_p = _p_values(difference)
    return PairedComparison(
        metric=metric,
        pairs=len(pairs),
        unit="group" if any(row.get("group") is not None for row in rows_a) else "image",
        skipped_images=int(len(keys) - measured.sum()),
        ties=int((difference == 0).sum()),
        mean_a=float(pairs[:, 0].mean()) if len(pairs) else math.nan,
        mean_b=float(pairs[:, 1].mean()) if len(pairs) else math.nan,
        mean_difference=interval.value,
        ci_low=interval.ci_low,
        ci_high=interval.ci_high,
        wilcoxon_p=wilcoxon_p,
        t_p=t_p,
    )


def _p_values(difference: NDArray[np.float64]) -> tuple[float, float]:
    """Return the two-sided p-values of the Wilcoxon signed-rank test and of the paired t-test."""
    from scipy import stats  # it takes as long to load as all other metrics

    if len(difference) < 2:
        return math.nan, math.nan
    if not difference.any():
        return 1.0, 1.0
    wilcoxon_p = float(stats.wilcoxon(difference).pvalue)
    if np.ptp(difference) == 0:
        return wilcoxon_p, 0.0  # the t statistic is infinite
    return wilcoxon_p, float(stats.ttest_1samp(difference, 0.0).pvalue)


def _unit_means(values: NDArray[np.float64], ranks: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Average the ``(images, 2)`` values of every unit; return ``(units, 2)``."""
    images = np.bincount(ranks, minlength=count)
    return np.column_stack(
        [np.bincount(ranks, weights=column, minlength=count) / images for column in values.reshape(-1, 2).T]
    )


def _by_image(
    rows: Sequence[Mapping[str, Any]], name: str, metric: str
) -> dict[tuple[str, str], Mapping[str, Any]]:
    if rows and not any(metric in row for row in rows):
        known = ", ".join(dict.fromkeys(key for row in rows for key in row))
        raise ConfigurationError(f"evaluation {name} has no metric '{metric}'; its columns are {known}.")
    by_image: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        key = (str(row.get("domain", "")), str(row["id"]))
        if key in by_image:
            raise ConfigurationError(f"evaluation {name}: image {_text(key)} occurs twice.")
        by_image[key] = row
    return by_image


def _check_same_images(a: Mapping[tuple[str, str], Any], b: Mapping[tuple[str, str], Any]) -> None:
    only = {"A": sorted(a.keys() - b.keys()), "B": sorted(b.keys() - a.keys())}
    found = [
        f"{len(keys)} only in {name} ({', '.join(map(_text, keys[:_NAMED_IDS]))}{', ...' * (len(keys) > _NAMED_IDS)})"
        for name, keys in only.items()
        if keys
    ]
    if found:
        raise ConfigurationError(
            f"the two evaluations are not of the same images: {' and '.join(found)}. "
            "Evaluate both on the same split of the same dataset."
        )


def _value(row: Mapping[str, Any], metric: str) -> float:
    value = row.get(metric)
    return math.nan if value is None else float(value)


def _text(key: tuple[str, str]) -> str:
    return "/".join(part for part in key if part)
