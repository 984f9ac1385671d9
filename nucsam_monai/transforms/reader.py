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

    ``LoadImage`` answers any failure of :meth:`read` by trying MONAI's own readers, of which some would
    return the image transposed, and reports none of the reasons as an exception. The file is therefore
    opened in :meth:`get_data`, whose exceptions it lets through.

    Example::

        LoadImaged(keys="image", reader="nucsam_monai.transforms.NucleiImageReader", image_only=True)
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike | str) -> bool:
        """Return whether the file's format is supported."""
        return str(filename).lower().endswith(tuple(SUPPORTED_SUFFIXES))

    def read(self, data: Sequence[PathLike] | PathLike | str, **_: Any) -> list[str]:
        """Return the paths that :meth:`get_data` reads."""
        return [str(data)] if isinstance(data, (str, PathLike)) else [str(path) for path in data]

    def get_data(self, img: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the pixels of one file and where their channel axis is.

        Raises:
            ImageReadError: more than one file, or one that cannot be read as a 2-D image.
        """
        if len(img) != 1:
            raise ImageReadError(f"expected one image file, found {len(img)}: {list(img)}.")
        pixels = read_image(img[0])
        return pixels, {"original_channel_dim": -1, "spatial_shape": np.asarray(pixels.shape[:2])}
