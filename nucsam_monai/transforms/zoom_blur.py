"""Blur towards the border, as from a lens that is zoomed during the exposure."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor
from torch.nn import functional as F


class RandZoomBlurd(RandomizableTransform, MapTransform):
    """Average an image with magnified versions of itself.

    Args:
        keys: ``(C, H, W)`` images.
        prob: share of the images that are changed.
        max_factor: upper bound of the largest magnification, which is drawn from 1 to this.
        step: difference of the magnifications.
    """

    def __init__(
        self, keys: KeysCollection = "image", prob: float = 0.1, max_factor: float = 1.05, step: float = 0.01
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.max_factor = max_factor
        self.step = step

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item; its images are float32 where they were changed."""
        item = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return item
        largest = self.R.uniform(1.0, self.max_factor)
        factors = torch.arange(1.0, largest + 1e-9, self.step, dtype=torch.float64).float()
        for key in self.key_iterator(item):
            image = convert_to_tensor(item[key], track_meta=False).float()
            item[key] = convert_to_dst_type(zoom_blur(image, factors), item[key], dtype=torch.float32)[0]
        return item


def zoom_blur(image: Tensor, factors: Tensor) -> Tensor:
    """Return the mean of ``(C, H, W)`` images magnified about their centre by each of the ``(n,)`` factors."""
    matrices = torch.zeros(len(factors), 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1 / factors
    grid = F.affine_grid(matrices, [len(factors), *image.shape], align_corners=False)
    batch = image.expand(len(factors), -1, -1, -1)
    return F.grid_sample(batch, grid, padding_mode="border", align_corners=False).mean(dim=0)
