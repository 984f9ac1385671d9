"""Bootstrap confidence intervals of values that are functions of sums over images.

A mean is a sum divided by a count, a pooled PQ or F1 a function of summed counts, a mean over tissues a function
of one sum and one count per tissue. All of them are resampled in the same way: images (or whole groups of
images, where several come from one slide or patient) are drawn with replacement, their sums are added, and
the function is applied to the result. One matrix product does this for all resamples and all sums at once.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.utils.errors import ConfigurationError

_BLOCK_ELEMENTS = 1 << 22  # resamples are drawn in blocks of at most 32 MB of weights


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are computed: by the percentile bootstrap (Efron and Tibshirani 1993, chapter 13).

    With fewer than about ten units the interval is too narrow; say how many there were.

    Attributes:
        resamples: how often the units are drawn; >= 1.
        confidence: nominal coverage of the interval, between 0 and 1.
        seed: the same seed gives the same intervals.
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
        confidence: share of the resamples inside the interval.

    Returns:
        ``(m,)`` lower and upper bounds, NaN for a column without any value.
    """
    bounds = np.full((2, values.shape[1]), np.nan)
    valued = ~np.isnan(values).all(axis=0)
    tail = 50 * (1 - confidence)
    if valued.any():
        bounds[:, valued] = np.nanpercentile(values[:, valued], [tail, 100 - tail], axis=0)
    return bounds[0], bounds[1]
