"""One documented rule that turns pixel values of any type into 8-bit RGB."""

import numpy as np

from nucsam_monai.utils.errors import ImageReadError


def to_rgb_uint8(pixels: np.ndarray, source: str) -> np.ndarray:
    """Convert the pixels of one image to RGB uint8.

    8-bit values are kept. Of every other type the values of all channels together decide, so that colours
    keep their proportions:

    ========================================  ==================================================
    values                                    result
    ========================================  ==================================================
    booleans                                  0 and 255
    all in 0..1, floating point               times 255
    all in 0..255 otherwise                   kept (8-bit data in a wider type)
    anything else, for example 12 or 16 bits  straight line from the lowest (0) to the highest (255)
    ========================================  ==================================================

    Grey is repeated in the three channels.

    Args:
        pixels: ``(H, W)`` or ``(H, W, 3)`` booleans, integers or floating point numbers.
        source: what an error message calls the image, usually its path.

    Returns:
        ``(H, W, 3)`` uint8, C-contiguous.

    Raises:
        ImageReadError: another shape or type, no pixels, or a value that is NaN or infinite.

    Example:
        >>> to_rgb_uint8(np.array([[0, 4095]], dtype=np.uint16), "dapi.tif")[..., 0]
        array([[  0, 255]], dtype=uint8)
    """
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ImageReadError(
            f"{source}: expected one grey or RGB image, found an array of shape {pixels.shape}."
        )
    if pixels.size == 0:
        raise ImageReadError(f"{source}: the image has no pixels (shape {pixels.shape}).")
    values = _to_uint8(pixels, source)
    if values.ndim == 2:
        values = np.repeat(values[..., np.newaxis], 3, axis=2)
    return np.ascontiguousarray(values)


def _to_uint8(pixels: np.ndarray, source: str) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    is_float = np.issubdtype(pixels.dtype, np.floating)
    if not is_float and not np.issubdtype(pixels.dtype, np.integer):
        raise ImageReadError(f"{source}: pixels of type {pixels.dtype} are not grey or colour values.")
    if is_float:
        invalid = pixels.size - int(np.count_nonzero(np.isfinite(pixels)))
        if invalid:
            raise ImageReadError(
                f"{source}: {invalid} of {pixels.size} values are NaN or infinite. Replace them first."
            )
    lowest, highest = float(pixels.min()), float(pixels.max())
    if is_float and lowest >= 0 and highest <= 1:
        offset, gain = 0.0, 255.0
    elif lowest >= 0 and highest <= 255:
        offset, gain = 0.0, 1.0
    else:
        # Halved, because the difference of two finite numbers need not be finite.
        half_range = highest / 2 - lowest / 2
        offset, gain = lowest, 127.5 / half_range if half_range > 0 else 0.0
    if np.isinf(gain) or np.isinf(highest - offset):
        raise ImageReadError(f"{source}: values from {lowest:g} to {highest:g} are no light intensities.")
    scaled = (pixels.astype(np.float64) - offset) * gain
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
