"""Aggregate one row per image into values of a set of images with bootstrap confidence intervals.

A mean is a sum divided by a count, a pooled PQ or F1 a function of summed counts, a mean over tissues a function
of one sum and one count per tissue. All of them are resampled in the same way: images (or whole groups of
images, if several come from one slide or patient) are drawn with replacement, their sums are added, and
the function is applied to the result. One matrix product does this for all resamples and all sums at once.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nucsam_monai.utils.errors import ConfigurationError

_BLOCK_ELEMENTS = 1 << 22  # resamples are drawn in blocks of at most 32 MB of weights


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    """Divide arrays of one shape, with NaN where the denominator is 0."""
    result = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=result, where=np.not_equal(denominator, 0))
    return result


def precision_recall_f1(weights: NDArray[Any]) -> NDArray[np.float64]:
    """Return precision, recall and F1.

    Args:
        weights: ``(..., 3)`` right predictions, false ones and misses.

    Returns:
        ``(..., 3)``.

    Example:
        >>> precision_recall_f1(np.array([3, 1, 0]))
        array([0.75      , 1.        , 0.85714286])
    """
    tp, false, missed = np.moveaxis(weights, -1, 0)
    parts = (tp, tp + false), (tp, tp + missed), (2 * tp, 2 * tp + false + missed)
    return np.stack([ratio(numerator, denominator) for numerator, denominator in parts], axis=-1)


def nan_mean(values: ArrayLike) -> float:
    """Return the mean of the values that are not NaN; NaN without any."""
    return float(nan_means(np.ravel(values), axis=0))


def nan_means(values: ArrayLike, axis: int) -> NDArray[np.float64]:
    """Return the means along an axis of the values that are not NaN; NaN without any."""
    array = np.asarray(values, dtype=np.float64)
    return ratio(np.nansum(array, axis=axis), np.count_nonzero(~np.isnan(array), axis=axis))


def nan_std(values: ArrayLike) -> float:
    """Return the sample standard deviation (n - 1) of the values that are not NaN; NaN for fewer than two."""
    array = np.asarray(values, dtype=np.float64)
    valid = array[~np.isnan(array)]
    return float(valid.std(ddof=1)) if valid.size > 1 else math.nan


@dataclass(frozen=True)
class Bootstrap:
    """Configure the intervals: the percentile bootstrap (Efron and Tibshirani 1993, chapter 13).

    With fewer than about ten units the interval is too narrow; say how many there were.

    Attributes:
        resamples: how often the units are drawn; >= 1.
        confidence: nominal coverage of the interval, between 0 and 1.
        seed: seed of the random generator; the same seed gives the same intervals.
    """

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0 < self.confidence < 1 or self.seed < 0:
            raise ConfigurationError(
                "Bootstrap: expected resamples >= 1, 0 < confidence < 1 and seed >= 0, found "
                f"resamples {self.resamples}, confidence {self.confidence} and seed {self.seed}."
            )


@dataclass(frozen=True)
class Estimate:
    """Hold a value of a set of images and its confidence interval.

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
    """Define values of a set of images that are functions of sums over the images.

    Attributes:
        names: ``m`` names of the values.
        sums: ``(images, k)`` what every image adds.
        function: from ``(n, k)`` total sums to ``(n, m)`` values; NaN without a value.
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
        statistics: statistics of the same images.
        units: resampling unit of each image: the image itself, or the group it belongs to.
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
        recall: ``(images,)``, NaN is left out.
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


def sum_by_unit(sums: NDArray[np.float64], keys: Sequence[Hashable]) -> NDArray[np.float64]:
    """Add the rows of every unit that is drawn as a whole.

    Args:
        sums: ``(images, k)``.
        keys: the unit of every image; sortable. Units come in the order of their keys, so that intervals do not
            depend on the order of the images.

    Returns:
        ``(units, k)``.

    Example:
        >>> sum_by_unit(np.array([[1.0], [2.0], [4.0]]), ["b", "a", "b"])
        array([[2.],
               [5.]])
    """
    ranks = {key: rank for rank, key in enumerate(sorted(set(keys)))}  # type: ignore[type-var]
    units = np.zeros((len(ranks), sums.shape[1]))
    np.add.at(units, [ranks[key] for key in keys], sums)
    return units


def resampled_sums(units: NDArray[np.float64], bootstrap: Bootstrap) -> NDArray[np.float64]:
    """Draw as many units as there are, with replacement, and add them up; ``resamples`` times.

    Args:
        units: ``(units, k)`` sums of every unit, at least one unit.
        bootstrap: number of resamples and seed.

    Returns:
        ``(resamples, k)``.
    """
    generator = np.random.default_rng(bootstrap.seed)
    count = len(units)
    block = max(1, _BLOCK_ELEMENTS // count)
    totals = np.empty((bootstrap.resamples, units.shape[1]))
    for start in range(0, bootstrap.resamples, block):
        size = min(block, bootstrap.resamples - start)
        drawn = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        totals[start : start + size] = times.astype(np.float64) @ units
    return totals


def percentile_interval(
    values: NDArray[np.float64], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the central interval of every column; resamples without a value (NaN) are left out.

    Args:
        values: ``(resamples, m)``.
        confidence: fraction of the resamples inside the interval.

    Returns:
        ``(m,)`` lower and upper bounds, NaN for a column without any value.
    """
    bounds = np.full((2, values.shape[1]), np.nan)
    valued = ~np.isnan(values).all(axis=0)
    tail = 50 * (1 - confidence)
    if valued.any():
        bounds[:, valued] = np.nanpercentile(values[:, valued], [tail, 100 - tail], axis=0)
    return bounds[0], bounds[1]
