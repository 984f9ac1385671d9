"""Ratios of counts, NaN where there is nothing to count."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
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
