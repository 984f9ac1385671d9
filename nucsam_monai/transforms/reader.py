"""Reading any supported image inside MONAI's ``LoadImage``."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from monai.data import ImageReader

from nucsam_monai.io import SUPPORTED_SUFFIXES, read_image
from nucsam_monai.utils.errors import ImageReadError


class NucleiImageReader(ImageReader):
    """Every two-dimensional image as ``(H, W, 3)`` uint8 RGB, see :func:`nucsam_monai.io.read_image`.

    Example::

        LoadImaged(keys="image", reader="nucsam_monai.transforms.NucleiImageReader", image_only=True)
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike | str) -> bool:
        """Return whether the file's format is supported."""
        return str(filename).lower().endswith(tuple(SUPPORTED_SUFFIXES))

    def read(self, data: Sequence[PathLike] | PathLike | str, **_: Any) -> np.ndarray:
        """Return the pixels of one file.

        Raises:
            ImageReadError: more than one file, or one that cannot be read as a 2-D image.
        """
        paths = [data] if isinstance(data, (str, PathLike)) else list(data)
        if len(paths) != 1:
            raise ImageReadError(f"expected one image file, found {len(paths)}: {paths}.")
        return read_image(str(paths[0]))

    def get_data(self, img: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the pixels and where their channel axis is."""
        return img, {"original_channel_dim": -1, "spatial_shape": np.asarray(img.shape[:2])}
