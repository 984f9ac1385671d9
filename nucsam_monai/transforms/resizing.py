"""Resize images and their label maps in the same way."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai import transforms as monai_transforms
from monai.transforms import ResizeWithPadOrCrop
from monai.utils import convert_to_dst_type, convert_to_numpy

from nucsam_monai.utils.resizing import resize_labels


class Resized(monai_transforms.Resized):
    """Resize images like MONAI's ``Resized``, and label maps with :func:`resize_labels`.

    Args:
        keys: keys of image and label map, in this order.
        spatial_size: height and width of the result.
    """

    def __init__(self, keys: Sequence[Hashable], spatial_size: Sequence[int]) -> None:
        super().__init__(keys, spatial_size, mode=["bilinear", "nearest-exact"], anti_aliasing=False)

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Return the item with both resized."""
        item = super().__call__(data, lazy)
        key = self.keys[1]
        labels = resize_labels(convert_to_numpy(data[key]), item[key].shape[-2:])
        item[key] = convert_to_dst_type(labels, item[key])[0]
        return item


class RandZoomd(monai_transforms.RandZoomd):
    """Zoom images like MONAI's ``RandZoomd``, and label maps with :func:`resize_labels`.

    Args:
        keys: keys of image and label map, in this order.
        prob: fraction of the items that are magnified.
        min_zoom: smallest factor.
        max_zoom: largest factor.
        keep_size: cut the result to the size of the item, or fill it up.
    """

    def __init__(
        self,
        keys: Sequence[Hashable],
        prob: float = 0.1,
        min_zoom: float = 0.9,
        max_zoom: float = 1.1,
        keep_size: bool = True,
    ) -> None:
        modes = ["bilinear", "nearest-exact"]
        super().__init__(keys, prob, min_zoom, max_zoom, mode=modes, keep_size=keep_size)

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Return the item with both magnified."""
        item = super().__call__(data, lazy)
        if not self._do_transform:
            return item
        key = self.keys[1]
        before = convert_to_numpy(data[key])
        factors = zip(before.shape[-2:], self.rand_zoom._zoom, strict=True)
        labels = torch.from_numpy(resize_labels(before, [int(length * factor) for length, factor in factors]))
        if self.rand_zoom.keep_size:
            labels = ResizeWithPadOrCrop(before.shape[-2:], mode="edge")(labels)
        item[key] = convert_to_dst_type(labels, item[key])[0]
        return item
