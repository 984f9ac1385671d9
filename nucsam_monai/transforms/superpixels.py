"""Replace some superpixels of an image by their mean colours."""

from collections.abc import Hashable, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_numpy
from numpy.typing import NDArray
from skimage.segmentation import slic

from nucsam_monai.utils.errors import ConfigurationError


class RandSuperpixelsd(RandomizableTransform, MapTransform):
    """Give a random share of an image's superpixels their mean colour (PromptNucSeg, training of the segmentor).

    The superpixels are those of SLIC (Achanta et al., 2012), found in a reduced copy of the image; those that are
    not replaced keep their full detail. Instance maps stay as they are.

    Args:
        keys: ``(C, H, W)`` images with values from 0 to 255.
        prob: share of the images that are changed.
        replace_prob: share of an image's superpixels that are replaced.
        n_segments: approximate number of superpixels.
        max_side_px: longest side of the reduced copy; the time grows with its area.

    Raises:
        ConfigurationError: a share outside of 0 to 1, or a number below 1.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        prob: float = 0.1,
        replace_prob: float = 0.1,
        n_segments: int = 200,
        max_side_px: int = 128,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if not 0 <= replace_prob <= 1 or n_segments < 1 or max_side_px < 1:
            raise ConfigurationError(
                "superpixels: expected replace_prob from 0 to 1, n_segments and max_side_px from 1 on, found "
                f"{replace_prob}, {n_segments} and {max_side_px}."
            )
        self.replace_prob = replace_prob
        self.n_segments = n_segments
        self.max_side_px = max_side_px

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item; its images are float32 where they were changed."""
        item = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return item
        for key in self.key_iterator(item):
            image = convert_to_numpy(item[key]).astype(np.float32)
            segments = superpixels(image, self.n_segments, self.max_side_px)
            replaced = self.R.random_sample(int(segments.max()) + 1) < self.replace_prob
            flat = flatten_segments(image, segments, replaced)
            item[key] = convert_to_dst_type(flat, item[key], dtype=torch.float32)[0]
        return item


def superpixels(image: NDArray[np.float32], n_segments: int, max_side_px: int) -> NDArray[np.int64]:
    """Return the superpixel ``(H, W)``, from 0 on, of every pixel of a ``(C, H, W)`` image from 0 to 255."""
    height, width = image.shape[1:]
    factor = min(1.0, max_side_px / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(np.ascontiguousarray(image.transpose(1, 2, 0)), size, interpolation=cv2.INTER_AREA)
    small = small.reshape(size[1], size[0], -1) / 255
    segments = slic(small, n_segments, start_label=0, channel_axis=-1, convert2lab=small.shape[-1] == 3)
    return cv2.resize(segments.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST).astype(
        np.int64
    )


def flatten_segments(
    image: NDArray[np.float32], segments: NDArray[np.int64], replaced: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the ``(C, H, W)`` image with the mean colour in every segment that is to be replaced.

    Args:
        image: is not changed.
        segments: ``(H, W)`` numbers from 0 on.
        replaced: ``(n,)``, by number of the segment.

    Example:
        >>> image = np.array([[[0.0, 4.0, 1.0, 3.0]]], dtype=np.float32)
        >>> flatten_segments(image, np.array([[0, 0, 1, 1]]), np.array([True, False]))
        array([[[2., 2., 1., 3.]]], dtype=float32)
    """
    labels = segments.ravel()
    sizes = np.maximum(np.bincount(labels, minlength=len(replaced)), 1)
    means = np.stack([np.bincount(labels, plane.ravel(), minlength=len(replaced)) / sizes for plane in image])
    return np.where(replaced[segments], means[:, segments], image).astype(np.float32)
