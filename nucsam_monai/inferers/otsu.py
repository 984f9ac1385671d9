"""The baseline that every trained method has to beat: one threshold."""

import numpy as np
from skimage.filters import threshold_otsu

from nucsam_monai.utils.errors import ImageReadError

_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def otsu_foreground(image: np.ndarray) -> np.ndarray:
    """Split an image in two by Otsu's threshold on its luminance and call the smaller side nuclei.

    The smaller side works for dark nuclei on a bright ground and for bright nuclei on a dark one, without
    looking at an annotation. An image of one grey value has no foreground.

    Source: Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9 (1979).

    Args:
        image: ``(H, W, 3)`` uint8 RGB.

    Returns:
        ``(H, W)`` bool.

    Raises:
        ImageReadError: the image is not ``(H, W, 3)`` uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageReadError(
            f"image: expected (H, W, 3) RGB of uint8, found shape {image.shape} of {image.dtype}."
        )
    luminance = np.rint(image @ _LUMINANCE).astype(np.uint8)
    if luminance.size == 0 or luminance.min() == luminance.max():
        return np.zeros(luminance.shape, dtype=bool)
    bright = luminance > threshold_otsu(luminance)
    return bright if bright.mean() <= 0.5 else ~bright
