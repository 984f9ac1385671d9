"""What a metric accepts: two label maps of one shape."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nucsam_monai.utils.errors import ConfigurationError


def as_label_maps(y: ArrayLike, y_pred: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return both label maps as NumPy arrays that every metric of this package can count.

    Args:
        y: ``(H, W)`` ground truth; integers >= 0 of any dtype, 0 = background, or a bool mask (one object).
        y_pred: ``(H, W)`` prediction, likewise.

    Returns:
        The two arrays; bool masks become uint8, everything else keeps its dtype and is not copied.

    Raises:
        ConfigurationError: a map is not two-dimensional, is not of integers or bool, holds a negative id, or
            the two shapes differ.
    """
    truth, prediction = as_integer_maps(y, y_pred)
    refuse_negative_ids("y", truth)
    refuse_negative_ids("y_pred", prediction)
    return truth, prediction


def as_integer_maps(y: ArrayLike, y_pred: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return both label maps like :func:`as_label_maps`, without looking for negative ids.

    Args:
        y: ``(H, W)`` ground truth.
        y_pred: ``(H, W)`` prediction.

    Raises:
        ConfigurationError: a map is not two-dimensional, is not of integers or bool, or the shapes differ.
    """
    truth, prediction = as_integer_map("y", y), as_integer_map("y_pred", y_pred)
    if truth.shape != prediction.shape:
        raise ConfigurationError(
            f"y has shape {truth.shape}, y_pred has shape {prediction.shape}. "
            "Resample the prediction to the size of the ground truth before measuring it."
        )
    return truth, prediction


def as_integer_map(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return one label map as a NumPy array, without looking for negative ids.

    Args:
        name: what an error calls the map.
        values: ``(H, W)`` integers, 0 = background, or a bool mask (one object).

    Raises:
        ConfigurationError: the map is not two-dimensional, or is not of integers or bool.
    """
    labels = np.asarray(values)
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise ConfigurationError(
            f"{name}: expected a (H, W) map of integer ids (0 = background) or a bool mask, found shape "
            f"{labels.shape} of {labels.dtype}. Remove channel axes and cast ids to an integer type."
        )
    return labels.view(np.uint8) if labels.dtype.kind == "b" else labels


def refuse_negative_ids(name: str, ids: NDArray[Any]) -> None:
    """Refuse a label map with an id below 0.

    Args:
        name: what an error calls the map.
        ids: the map, or every id in it.

    Raises:
        ConfigurationError: there is a negative id.
    """
    if ids.dtype.kind == "i" and ids.size and ids.min() < 0:
        raise ConfigurationError(
            f"{name}: found the negative id {ids.min()}, expected ids >= 0. "
            "Set ignored or unknown pixels to 0 (background)."
        )
