"""Means and spreads that leave NaN out."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def nan_mean(values: ArrayLike) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    valid = _valid(values)
    return float(valid.mean()) if valid.size else math.nan


def nan_std(values: ArrayLike) -> float:
    """Return the sample standard deviation (n - 1) of the values that are not NaN; NaN for fewer than two."""
    valid = _valid(values)
    return float(valid.std(ddof=1)) if valid.size > 1 else math.nan


def _valid(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[~np.isnan(array)]
