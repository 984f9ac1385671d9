"""Label images: a TIFF whose pixel values are nucleus ids."""

from pathlib import Path

import numpy as np
import tifffile

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_path

_LARGEST_UINT16 = np.iinfo(np.uint16).max


def write_label_image(path: Path | str, instances: np.ndarray) -> None:
    """Write a label map as zlib-compressed TIFF: uint16, or int32 where an id is larger than 65535.

    Args:
        path: the file, ``.tif``; it appears complete or not at all.
        instances: ``(H, W)`` integers, 0 = background.

    Raises:
        ConfigurationError: the map has another shape or type, no pixels, or ids that do not fit.
    """
    if instances.ndim != 2 or not np.issubdtype(instances.dtype, np.integer) or instances.size == 0:
        raise ConfigurationError(
            f"{path}: expected a (H, W) map of integers, found shape {instances.shape} of {instances.dtype}."
        )
    lowest, highest = int(instances.min()), int(instances.max())
    if lowest < 0 or highest > np.iinfo(np.int32).max:
        raise ConfigurationError(f"{path}: ids from {lowest} to {highest}, expected 0 to 2147483647.")
    stored_type = np.uint16 if highest <= _LARGEST_UINT16 else np.int32
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            instances.astype(stored_type, copy=False),
            photometric="minisblack",
            compression="zlib",
            metadata=None,
        )
