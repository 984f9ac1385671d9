"""Hausdorff distance between the boundaries of two binary foregrounds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from nucsam_monai.metrics.label_maps import as_label_maps
from nucsam_monai.utils.errors import ConfigurationError


def hausdorff_distance(y: ArrayLike, y_pred: ArrayLike, percentile: float | None = None) -> float:
    """Return the Hausdorff distance between the foreground boundaries, in pixels.

    Foreground is every id > 0. Its boundary is what a 4-neighbour erosion removes; outside the image counts
    as background, so foreground pixels on the image border are boundary. The distance is the larger of the
    two directed ones; a directed distance is the maximum, or the given percentile, of the Euclidean
    distances from every boundary pixel of one mask to the nearest boundary pixel of the other. (Other tools
    take the percentile of both directions together, which is smaller.)

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool.
        y_pred: ``(H, W)`` prediction, likewise.
        percentile: 0 < percentile <= 100, linearly interpolated; None is the maximum. 95 gives HD95.

    Returns:
        The distance in pixels. Both foregrounds empty: 0. One empty: the image diagonal,
        ``sqrt(H**2 + W**2)``.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape, or the percentile is out of range.

    Example:
        >>> hausdorff_distance([[1, 0, 0, 0]], [[0, 0, 0, 1]])
        3.0
    """
    return hausdorff_distances(y, y_pred, [100.0 if percentile is None else percentile])[0]


def hausdorff_distances(y: ArrayLike, y_pred: ArrayLike, percentiles: Sequence[float]) -> tuple[float, ...]:
    """Return one Hausdorff distance per percentile, all from one search for nearest boundary pixels.

    Args:
        y: ``(H, W)`` ground truth, integers >= 0 or bool.
        y_pred: ``(H, W)`` prediction, likewise.
        percentiles: each 0 < percentile <= 100; 100 is the maximum, the plain Hausdorff distance.

    Returns:
        The distances in pixels, see :func:`hausdorff_distance`.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape, or a percentile is out of range.
    """
    for percentile in percentiles:
        if not 0 < percentile <= 100:
            raise ConfigurationError(f"percentile: expected 0 < percentile <= 100, found {percentile}.")
    truth, prediction = (labels > 0 for labels in as_label_maps(y, y_pred))
    empty = (not truth.any(), not prediction.any())
    if any(empty):
        distance = 0.0 if all(empty) else math.hypot(*truth.shape)
        return (distance,) * len(percentiles)
    truth_boundary, prediction_boundary = _boundary(truth), _boundary(prediction)
    directed = (
        _distances_to(truth_boundary, prediction_boundary),
        _distances_to(prediction_boundary, truth_boundary),
    )
    return tuple(float(max(np.percentile(d, percentile) for d in directed)) for percentile in percentiles)


def _boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of the mask with a 4-neighbour outside the mask or outside the image."""
    boundary = mask.copy()
    boundary[1:-1, 1:-1] &= ~(mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:])
    return boundary


def _distances_to(target: NDArray[np.bool_], source: NDArray[np.bool_]) -> NDArray[Any]:
    """Return, for every source pixel, the distance in pixels to the nearest target pixel."""
    distances = np.zeros(np.count_nonzero(source))
    apart = source & ~target
    if apart.any():
        # pixels that both boundaries share have distance 0 and need no search; their order is of no interest
        distances[: np.count_nonzero(apart)], _ = KDTree(np.argwhere(target)).query(np.argwhere(apart))
    return distances
