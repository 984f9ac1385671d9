"""Read images inside MONAI's LoadImage, and normalise them as SAM expects."""

from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, get_args

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from nucsam_monai.io import MAX_PIXELS, SUPPORTED_SUFFIXES, check_intensity_range, read_image, whole_image_px
from nucsam_monai.utils.errors import ConfigurationError, ImageReadError
from nucsam_monai.utils.sam_pixels import SAM_PIXEL_MEAN, SAM_PIXEL_STD

_INTERPOLATION = 1e-2  # how far rounding takes interpolated values beyond the scale
PixelStd = Literal["sam", "released", "image"]
FAINTEST_STD = 2.0
"""Noise of an empty image must not be blown up to the contrast of nuclei."""


class NucleiImageReader(ImageReader):
    """Read every two-dimensional image as ``(H, W, 3)`` uint8 RGB, see :func:`nucsam_monai.io.read_image`.

    ``LoadImage`` answers any failure of :meth:`read` by trying MONAI's own readers, of which some would
    return the image transposed, and reports none of the reasons as an exception. The file is therefore
    opened in :meth:`get_data`, whose exceptions it lets through.

    Args:
        max_pixels: larger images are refused; None takes what can be segmented as a whole, see
            :func:`nucsam_monai.io.whole_image_px`.
        intensity_range: the values that become 0 and 255; None keeps 8-bit values and chooses for others.

    Example::

        LoadImaged(keys="image", reader="nucsam_monai.transforms.NucleiImageReader", image_only=True)
    """

    def __init__(
        self, max_pixels: int | None = MAX_PIXELS, intensity_range: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.max_pixels = max_pixels
        self.intensity_range = check_intensity_range(intensity_range)

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
        limit = whole_image_px() if self.max_pixels is None else self.max_pixels
        pixels = read_image(img[0], max_pixels=limit, intensity_range=self.intensity_range)
        return pixels, {"original_channel_dim": -1, "spatial_shape": np.asarray(pixels.shape[:2])}


class NormalizeSAMd(MapTransform):
    """Subtract SAM's pixel mean and divide by its standard deviation, on the 0-255 scale.

    Args:
        keys: ``(3, H, W)`` RGB images with values in 0..255.
        pixel_std: ``sam``; ``released`` for UN-SAM's published weights, whose loader divides by the mean; ``image``
            for mean and standard deviation of the image's own, over all colours together, so that faint and strong
            images look alike.
        allow_missing_keys: pass over keys that an item lacks.

    Raises:
        ConfigurationError: an unknown ``pixel_std``; or, when called, an image that is not RGB or not on the
            0-255 scale: SAM gives poor masks for images in 0..1 without any other sign of it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        pixel_std: PixelStd = "sam",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if pixel_std not in get_args(PixelStd):
            raise ConfigurationError(
                f"pixel_std '{pixel_std}': expected one of {', '.join(get_args(PixelStd))}."
            )
        self.own = pixel_std == "image"
        self.mean = torch.tensor(SAM_PIXEL_MEAN).view(3, 1, 1)
        self.std = torch.tensor(SAM_PIXEL_STD).view(3, 1, 1) if pixel_std == "sam" else self.mean

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with float32 images."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = convert_to_tensor(item[key], track_meta=False)
            _check_scale(image)
            image = image.float()
            centred, std = image - (image.mean() if self.own else self.mean), self.std
            if self.own:  # in a tenth of the time of torch.std
                std = (centred.square().sum() / (image.numel() - 1)).sqrt().clamp(min=FAINTEST_STD)
            item[key] = convert_to_dst_type(centred / std, item[key], dtype=torch.float32)[0]
        return item


def _check_scale(image: Tensor) -> None:
    if image.ndim != 3 or image.shape[0] != 3:
        raise ConfigurationError(f"image: expected RGB (3, H, W), found {tuple(image.shape)}.")
    lowest, highest = float(image.min()), float(image.max())
    # Whole numbers up to 1 are a nearly black image, for example a crop without nuclei.
    from_unit_scale = highest <= 1 and image.is_floating_point() and bool((image != image.round()).any())
    if not (lowest >= -_INTERPOLATION and highest <= 255 + _INTERPOLATION) or from_unit_scale:
        raise ConfigurationError(
            f"image: expected values in 0..255, found {lowest:g}..{highest:g} ({image.dtype}). "
            "Normalise once, and from the 8-bit scale."
        )
