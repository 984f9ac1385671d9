"""Shuffle the cells of a grid over image and instances."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor


class RandGridShuffled(RandomizableTransform, MapTransform):
    """Cut image and instances into ``n x n`` cells of equal size and exchange these at random.

    Parts of a nucleus in different cells are scattered. Each becomes a nucleus of its own with the class of
    the whole, as at the border of a crop; the item's ``classes_key`` gains their ids where there are classes.
    Rows and columns that are left over at the bottom and right stay where they are, as cells of their own. An
    image of fewer pixels than cells along a side stays as it is.

    Args:
        keys: ``(C, H, W)`` images of one size that move together.
        instances_key: which of them is the instance map.
        prob: share of the items that are changed.
        grid: n.
        classes_key: key of ``{instance id: class id}``.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "instances"),
        instances_key: str = "instances",
        prob: float = 0.5,
        grid: int = 4,
        classes_key: str = "classes",
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.instances_key = instances_key
        self.grid = grid
        self.classes_key = classes_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item; what it was made from stays as it is."""
        item = dict(data)
        self.randomize(None)
        height, width = item[self.instances_key].shape[-2:]
        if not self._do_transform or min(height, width) < self.grid:
            return item
        order = torch.from_numpy(self.R.permutation(self.grid**2))
        for key in self.key_iterator(item):
            pixels = convert_to_tensor(item[key], track_meta=False)
            if key == self.instances_key:
                pixels, wholes = _one_id_per_part(pixels, self.grid)
                classes = item.get(self.classes_key)
                if classes is not None:
                    item[self.classes_key] = {
                        part: classes[whole] for part, whole in wholes.items() if whole in classes
                    }
            item[key] = convert_to_dst_type(shuffle_cells(pixels, order, self.grid), item[key])[0]
        return item


def shuffle_cells(pixels: Tensor, order: Tensor, grid: int) -> Tensor:
    """Return ``(C, H, W)`` pixels whose cell k is the cell ``order[k]`` of the input, cells counted by rows.

    Example:
        >>> shuffle_cells(torch.tensor([[[1, 2], [3, 4]]]), torch.tensor([3, 0, 1, 2]), grid=2)
        tensor([[[4, 1],
                 [2, 3]]])
    """
    channels, height, width = pixels.shape
    h, w = height // grid, width // grid
    cells = pixels[:, : grid * h, : grid * w].reshape(channels, grid, h, grid, w).permute(1, 3, 0, 2, 4)
    moved = cells.flatten(0, 1)[order].unflatten(0, (grid, grid))
    shuffled = pixels.clone()
    shuffled[:, : grid * h, : grid * w] = moved.permute(2, 0, 3, 1, 4).reshape(channels, grid * h, grid * w)
    return shuffled


def _one_id_per_part(instances: Tensor, grid: int) -> tuple[Tensor, dict[int, int]]:
    """Number the parts of nuclei in each cell of a ``(1, H, W)`` map anew; return ``{new id: old id}`` too."""
    height, width = instances.shape[-2:]
    row = np.minimum(np.arange(height) // (height // grid), grid)
    column = np.minimum(np.arange(width) // (width // grid), grid)
    cell = row[:, None] * (grid + 1) + column
    ids = instances[0].round().to(torch.int64).numpy()
    parts, numbers = np.unique(ids[ids > 0] * (grid + 1) ** 2 + cell[ids > 0], return_inverse=True)
    renumbered = np.zeros_like(ids)
    renumbered[ids > 0] = numbers + 1
    wholes = (parts // (grid + 1) ** 2).tolist()
    return torch.from_numpy(renumbered)[None].to(instances.dtype), dict(enumerate(wholes, start=1))
