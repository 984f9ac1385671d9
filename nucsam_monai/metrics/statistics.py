"""From one row per image to values of a set of images, each with its confidence interval."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.metrics.bootstrap import Bootstrap, percentile_interval, resampled_sums, sum_by_unit
from nucsam_monai.metrics.ratios import ratio


@dataclass(frozen=True)
class Estimate:
    """A value of a set of images.

    Attributes:
        value: the value; NaN where no image has one.
        ci_low: lower bound of the confidence interval; NaN where fewer than two units contribute.
        ci_high: upper bound.
    """

    value: float
    ci_low: float = math.nan
    ci_high: float = math.nan


@dataclass(frozen=True)
class Statistic:
    """Values of a set of images that are functions of sums over the images.

    Attributes:
        names: ``m`` names of the values.
        sums: ``(images, k)`` what every image adds.
        function: from ``(n, k)`` total sums to ``(n, m)`` values; NaN where there is no value.
    """

    names: tuple[str, ...]
    sums: NDArray[np.float64]
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    def of_images(self, images: Sequence[int]) -> "Statistic":
        """Return the same statistic of some of the images, given by their positions."""
        return Statistic(self.names, self.sums[list(images)], self.function)


def estimate(
    statistics: Sequence[Statistic], units: Sequence[Hashable], bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """Return every value of the statistics with its bootstrap interval; all share the same resamples.

    Args:
        statistics: of the same images.
        units: what is drawn as a whole, per image: the image itself, or the group it belongs to.
        bootstrap: resamples, confidence and seed.
    """
    if not statistics or not units:
        return {name: Estimate(math.nan) for statistic in statistics for name in statistic.names}
    by_unit = sum_by_unit(np.hstack([statistic.sums for statistic in statistics]), units)
    totals, resampled = by_unit.sum(axis=0, keepdims=True), resampled_sums(by_unit, bootstrap)
    estimates: dict[str, Estimate] = {}
    start = 0
    for statistic in statistics:
        columns = slice(start, start + statistic.sums.shape[1])
        start = columns.stop
        values = statistic.function(totals[:, columns])[0]
        low, high = percentile_interval(statistic.function(resampled[:, columns]), bootstrap.confidence)
        if np.count_nonzero(by_unit[:, columns].any(axis=1)) < 2:
            low, high = np.full_like(low, np.nan), np.full_like(high, np.nan)
        for name, value, lower, upper in zip(statistic.names, values, low, high, strict=True):
            known = not math.isnan(value)
            estimates[name] = Estimate(
                float(value), float(lower) if known else math.nan, float(upper) if known else math.nan
            )
    return estimates


def mean_statistic(name: str, values: NDArray[np.float64]) -> Statistic:
    """Return the mean over the images whose value is not NaN.

    Args:
        name: name of the metric.
        values: ``(images,)``.
    """
    measured = ~np.isnan(values)
    sums = np.column_stack([np.where(measured, values, 0), measured])
    return Statistic((name,), sums, lambda totals: ratio(totals[:, :1], totals[:, 1:]))


def f1_mean_pr_statistic(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> Statistic:
    """Return the F1 of mean precision and mean recall, see :func:`nucsam_monai.metrics.f1_mean_pr`.

    Args:
        precision: ``(images,)``, NaN is left out.
        recall: likewise.
    """
    parts = [mean_statistic("precision", precision), mean_statistic("recall", recall)]

    def f1(totals: NDArray[np.float64]) -> NDArray[np.float64]:
        p, r = (part.function(totals[:, 2 * i : 2 * i + 2]) for i, part in enumerate(parts))
        return np.where(p + r == 0, 0.0, ratio(2 * p * r, p + r))

    return Statistic(("f1_mean_pr",), np.hstack([part.sums for part in parts]), f1)


def value_cells(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Return the values as cells ``<metric>`` of one row of a table."""
    return {name: found.value for name, found in estimates.items()}


def interval_cells(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Return the intervals as cells ``<metric>_ci_low`` and ``<metric>_ci_high`` of one row of a table."""
    cells: dict[str, float] = {}
    for name, found in estimates.items():
        cells |= {f"{name}_ci_low": found.ci_low, f"{name}_ci_high": found.ci_high}
    return cells


def metric_columns(
    rows: Sequence[Mapping[str, object]], texts: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Return the numbers of a table column by column; cells that are missing are NaN.

    Args:
        rows: one mapping per image.
        texts: columns that describe the image instead of measuring it.
    """
    names = dict.fromkeys(
        name for row in rows for name, value in row.items() if name not in texts and _is_number(value)
    )
    return {name: np.array([_number(row.get(name)) for row in rows]) for name in names}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float, np.integer, np.floating)) else math.nan
