"""Maps of all nuclei as targets of every pixel."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import ComputeHoVerMaps, MapTransform
from monai.utils import convert_to_tensor

from nucsam_monai.utils.errors import ConfigurationError


class DenseNucleid(MapTransform):
    """Add the mask of all nuclei and, from each nucleus's centre, the horizontal and vertical distance of its pixels.

    The target of HoVer-Net (Graham et al., 2019, section 3.1) in cells of several pixels; the pixel in the middle of
    a cell speaks for it, as in the losses of masks.

    Args:
        keys: the instance map ``(1, H, W)``.
        output_key: key of the target ``(3, H // k, W // k)`` float32: 0 or 1, and distances from -1 to 1.
        pixels_per_cell: k.

    Raises:
        ConfigurationError: a cell of less than one pixel.
    """

    def __init__(
        self, keys: KeysCollection = "instances", output_key: str = "dense", pixels_per_cell: int = 1
    ) -> None:
        super().__init__(keys)
        if pixels_per_cell < 1:
            raise ConfigurationError(f"pixels_per_cell {pixels_per_cell}: expected 1 or more.")
        self.output_key = output_key
        self.pixels_per_cell = pixels_per_cell
        self.distances = ComputeHoVerMaps()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the target added."""
        item = dict(data)
        side = self.pixels_per_cell
        for key in self.key_iterator(item):
            instances = convert_to_tensor(item[key], track_meta=False)
            rows, columns = (side * (length // side) for length in instances.shape[-2:])
            cells = instances[:, side // 2 : rows : side, side // 2 : columns : side]
            distances = convert_to_tensor(self.distances(cells), dtype=torch.float32, track_meta=False)
            item[self.output_key] = torch.cat([(cells > 0).float(), distances])
        return item
