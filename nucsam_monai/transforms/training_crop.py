"""Random crops of images at random magnification, and what microscopes, stains and cameras do to them."""

from collections.abc import Hashable, Mapping, Sequence
from math import gcd
from typing import Any, Literal

import cv2
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from monai.utils import convert_to_numpy
from numpy.typing import NDArray
from skimage.color import hed_from_rgb, rgb_from_hed

from nucsam_monai.transforms.instances import NucleusDistanced
from nucsam_monai.transforms.intensity import RandColorJitterd
from nucsam_monai.utils.instances import InstanceRule

Interpolation = Literal["image", "map", "labels"]
"""How a crop is resized: ``image`` averages where it shrinks, ``map`` interpolates, ``labels`` keeps ids."""


def microscopy_augmentation(
    size_px: int, zoom: tuple[float, float] = (0.6, 1.6), instances: InstanceRule = "components"
) -> list[MapTransform]:
    """Return random crops and changes of colour for images of any microscope, stain and magnification.

    Args:
        size_px: side of a crop.
        zoom: smallest and largest magnification of a crop.
        instances: for ``distance`` the map of each whole image is cropped with it, so that nuclei at the border of a
            crop keep their depth.
    """
    interpolation: dict[str, Interpolation] = {"image": "image", "instances": "labels"}
    maps: list[MapTransform] = []
    if instances == "distance":
        maps = [NucleusDistanced(output_key="distance")]
        interpolation["distance"] = "map"
    return [
        *maps,
        RandZoomCropd(tuple(interpolation), size_px, tuple(interpolation.values()), zoom),
        RandStainJitterd("image"),
        RandColorJitterd("image", prob=0.8),
        RandDegraded("image"),
    ]


class RandZoomCropd(Randomizable, MapTransform):
    """Cut a random square out of an image, at a random magnification, turned and mirrored at random.

    Images smaller than the window are continued by their mirror image. All keys are resized about pixel centres,
    so that labels stay on their image.

    Args:
        keys: ``(C, H, W)`` arrays of one size.
        size_px: side of the result.
        interpolation: one :data:`Interpolation` per key.
        zoom: smallest and largest magnification, drawn log-uniformly.
        prob: share of the crops that are magnified; the others keep their scale.
    """

    def __init__(
        self,
        keys: KeysCollection,
        size_px: int,
        interpolation: Sequence[Interpolation],
        zoom: tuple[float, float] = (0.6, 1.6),
        prob: float = 0.7,
    ) -> None:
        MapTransform.__init__(self, keys)
        self.size_px = size_px
        self.interpolation = tuple(interpolation)
        self.zoom = zoom
        self.prob = prob

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``(C, size_px, size_px)`` tensors."""
        item = dict(data)
        height, width = item[self.keys[0]].shape[-2:]
        zoomed = self.R.random() < self.prob
        zoom = float(np.exp(self.R.uniform(*np.log(self.zoom)))) if zoomed else 1.0
        side = max(1, round(self.size_px / zoom))
        if (
            side // gcd(side, self.size_px) % 2 == 0
        ):  # centres between two pixels: labels would take the later
            side -= 1
        y, x = (int(self.R.randint(0, max(1, length - side + 1))) for length in (height, width))
        turns, mirrored = int(self.R.randint(4)), bool(self.R.randint(2))
        for key, interpolation in zip(self.keys, self.interpolation, strict=True):
            window = convert_to_numpy(item[key][:, y : y + side, x : x + side])
            missing = [(0, 0), *((0, side - length) for length in window.shape[1:])]
            window = np.pad(window, missing, mode="symmetric") if window.shape[1:] != (side, side) else window
            window = np.rot90(_resized(window, self.size_px, interpolation), turns, axes=(1, 2))
            item[key] = torch.from_numpy(np.ascontiguousarray(window[:, :, ::-1] if mirrored else window))
        return item


def _resized(window: NDArray[Any], size_px: int, interpolation: Interpolation) -> NDArray[Any]:
    """Resize ``(C, side, side)`` to ``(C, size_px, size_px)``."""
    side = window.shape[-1]
    if side == size_px:
        return window
    how = cv2.INTER_LINEAR
    if interpolation == "labels":
        how = cv2.INTER_NEAREST_EXACT
    elif interpolation == "image" and side > size_px:
        how = cv2.INTER_AREA
    # OpenCV has no int32; float32 holds ids up to 2 ** 24.
    source = window.astype(np.float32) if window.dtype == np.int32 else window
    channels = [cv2.resize(channel, (size_px, size_px), interpolation=how) for channel in source]
    return np.stack(channels).astype(window.dtype, copy=False)


class RandStainJitterd(RandomizableTransform, MapTransform):
    """Vary the amounts of haematoxylin, eosin and DAB in images on a bright ground.

    The colours are taken apart as by Ruifrok and Johnston (2001). Images on a dark ground, which no stain absorbs,
    are left alone.

    Args:
        keys: ``(3, H, W)`` RGB images with values in 0..255.
        prob: share of the bright images that are changed.
        strength: largest relative change of a stain's amount.
        shift: largest change added to it, in optical density.
    """

    def __init__(
        self, keys: KeysCollection, prob: float = 0.5, strength: float = 0.3, shift: float = 0.03
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.strength = strength
        self.shift = shift

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item; its images stay uint8."""
        item = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return item
        amount = 1 + self.R.uniform(-self.strength, self.strength, size=3).astype(np.float32)
        shift = self.R.uniform(-self.shift, self.shift, size=3).astype(np.float32)
        for key in self.key_iterator(item):
            image = convert_to_numpy(item[key])
            if image.mean() > 100:
                item[key] = torch.from_numpy(_restained(image, amount, shift))
        return item


_OPTICAL_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)
_HED_FROM_RGB, _RGB_FROM_HED = hed_from_rgb.astype(np.float32), rgb_from_hed.astype(np.float32)


def _restained(image: NDArray[np.uint8], amount: NDArray[Any], shift: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale and shift the stains of ``(3, H, W)``; one matrix does both ways and the scaling."""
    change = _HED_FROM_RGB @ np.diag(amount) @ _RGB_FROM_HED
    density = change.T @ _OPTICAL_DENSITY[image.reshape(3, -1)] + (shift @ _RGB_FROM_HED)[:, None]
    return np.clip(255 * np.exp(-density), 0, 255).round().astype(np.uint8).reshape(image.shape)


class RandDegraded(Randomizable, MapTransform):
    """Take colour, sharpness and polarity away, and add noise and compression, each with a probability.

    Args:
        keys: ``(3, H, W)`` RGB images with values in 0..255.
        grey: share of the images that lose their colour.
        inverted: share that become their negative.
        blurred: share that are smoothed by a Gaussian of up to 1.5 px.
        noisy: share that get Gaussian noise of a standard deviation of up to 12.
        compressed: share that pass through JPEG of a quality from 30 to 90.
    """

    def __init__(
        self,
        keys: KeysCollection,
        grey: float = 0.15,
        inverted: float = 0.05,
        blurred: float = 0.15,
        noisy: float = 0.2,
        compressed: float = 0.1,
    ) -> None:
        MapTransform.__init__(self, keys)
        self.grey = grey
        self.inverted = inverted
        self.blurred = blurred
        self.noisy = noisy
        self.compressed = compressed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item; its images are uint8."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = np.ascontiguousarray(convert_to_numpy(item[key]).transpose(1, 2, 0)).astype(np.uint8)
            item[key] = torch.from_numpy(np.ascontiguousarray(self._degraded(image).transpose(2, 0, 1)))
        return item

    def _degraded(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        grey, inverted, blurred, noisy, compressed = self.R.random(5)
        if grey < self.grey:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if inverted < self.inverted:
            image = 255 - image
        if blurred < self.blurred:
            image = cv2.GaussianBlur(image, (0, 0), self.R.uniform(0.3, 1.5))
        if noisy < self.noisy:
            noise = self.R.normal(0, self.R.uniform(0, 12), size=(*image.shape[:2], 1))
            image = np.clip(image + noise, 0, 255).astype(np.uint8)
        if compressed < self.compressed:
            _, file = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(self.R.randint(30, 91))])
            image = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR), dtype=np.uint8)
        return image
