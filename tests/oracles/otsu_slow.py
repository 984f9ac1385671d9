"""Otsu's threshold by trying every one."""

import numpy as np


def slow_otsu_threshold(grey: np.ndarray) -> int:
    """Return the t for which the classes ``<= t`` and ``> t`` have the largest variance between them."""
    values = grey.ravel().astype(float)
    best_threshold, best_variance = 0, -1.0
    for threshold in range(int(values.min()), int(values.max())):
        low, high = values[values <= threshold], values[values > threshold]
        variance = len(low) * len(high) * (low.mean() - high.mean()) ** 2
        if variance > best_variance * (1 + 1e-12):
            best_threshold, best_variance = threshold, variance
    return best_threshold
