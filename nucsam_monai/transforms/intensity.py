"""SAM's normalisation, and changes of colour as microscopes and stains make them."""

from collections.abc import Hashable, Mapping
from typing import Any, Literal, get_args

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.sam_pixels import SAM_PIXEL_MEAN, SAM_PIXEL_STD

_INTERPOLATION = 1e-2  # how far rounding takes interpolated values beyond the scale


PixelStd = Literal["sam", "released", "image"]
FAINTEST_STD = 2.0
"""Noise of an empty image must not be blown up to the contrast of nuclei."""


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
            mean, std = self.mean, self.std
            if self.own:
                std, mean = torch.std_mean(image.float())
                std = std.clamp(min=FAINTEST_STD)
            normalised = (image.float() - mean) / std
            item[key] = convert_to_dst_type(normalised, item[key], dtype=torch.float32)[0]
        return item


class RandColorJitterd(RandomizableTransform, MapTransform):
    """Change brightness, contrast and the balance of the colours.

    The result has whole numbers in 0..255 like the 8-bit image it came from.

    Args:
        keys: ``(3, H, W)`` RGB images with values in 0..255.
        prob: share of the images that are changed.
        brightness: largest shift, as a share of 255.
        contrast: largest relative change of the contrast around the image's mean.
        balance: largest relative change of a single colour channel, as differing stains give.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.8,
        brightness: float = 0.1,
        contrast: float = 0.3,
        balance: float = 0.1,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.ranges = {"brightness": brightness, "contrast": contrast, "balance": balance}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item; its images are float32 where they were changed."""
        item = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return item
        shift = 255.0 * self._draw("brightness")
        contrast = 1.0 + self._draw("contrast")
        balance = torch.tensor([1.0 + self._draw("balance") for _ in range(3)]).view(3, 1, 1)
        for key in self.key_iterator(item):
            image = convert_to_tensor(item[key], track_meta=False).float()
            mean = image.mean()
            changed = (((image - mean) * contrast + mean + shift) * balance).clamp_(0.0, 255.0).round_()
            item[key] = convert_to_dst_type(changed, item[key], dtype=torch.float32)[0]
        return item

    def _draw(self, name: str) -> float:
        return float(self.R.uniform(-self.ranges[name], self.ranges[name]))


def _check_scale(image: Tensor) -> None:
    if image.ndim != 3 or image.shape[0] != 3:
        raise ConfigurationError(f"image: expected RGB (3, H, W), found {tuple(image.shape)}.")
    lowest, highest = float(image.min()), float(image.max())
    # Whole numbers up to 1 are a nearly black image, for example a crop beside all nuclei.
    from_unit_scale = highest <= 1 and image.is_floating_point() and bool((image != image.round()).any())
    if not (lowest >= -_INTERPOLATION and highest <= 255 + _INTERPOLATION) or from_unit_scale:
        raise ConfigurationError(
            f"image: expected values in 0..255, found {lowest:g}..{highest:g} ({image.dtype}). "
            "Normalise once, and from the 8-bit scale."
        )
