"""Masks that were asked for one by one, each measured against the nucleus that was meant."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nucsam_monai.utils.errors import ConfigurationError


def mask_ious(y: ArrayLike, y_pred: ArrayLike) -> NDArray[np.float64]:
    """Return the intersection over union of each pair of masks; two empty masks agree.

    Args:
        y: ``(n, H, W)`` true masks, true or not 0 inside.
        y_pred: ``(n, H, W)`` predicted masks in the same order.

    Raises:
        ConfigurationError: the shapes differ or are no stacks of masks.

    Example:
        >>> mask_ious([[[1, 1, 0]]], [[[0, 1, 1]]])
        array([0.33333333])
    """
    true, found = np.asarray(y) != 0, np.asarray(y_pred) != 0
    if true.ndim != 3 or true.shape != found.shape:
        raise ConfigurationError(
            f"masks: expected two stacks of one shape (n, H, W), found {true.shape} and {found.shape}."
        )
    shared = np.count_nonzero(true & found, axis=(1, 2))
    either = np.count_nonzero(true | found, axis=(1, 2))
    return np.where(either > 0, shared / np.maximum(either, 1), 1.0)
