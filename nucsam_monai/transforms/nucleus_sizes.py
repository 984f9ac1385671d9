"""The sizes of nuclei, for a detector of boxes."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_numpy

from nucsam_monai.utils.prediction import prediction_from_instances


class NucleusSizesd(MapTransform):
    """Add the width and height of every nucleus' box.

    Args:
        keys: the instance map ``(1, H, W)``; whole numbers, also in a floating-point type.

    The item gains ``point_sizes`` ``(G, 2)`` float32 in pixels, ordered by instance id like the points of
    :class:`~nucsam_monai.transforms.NucleusCentroidsd`.
    """

    def __init__(self, keys: KeysCollection = "instances") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the sizes added."""
        item = dict(data)
        for key in self.key_iterator(item):
            instances = np.rint(convert_to_numpy(item[key])[0]).astype(np.int64)
            table = prediction_from_instances(instances).table
            width = table["box_x_max_px"] - table["box_x_min_px"]
            height = table["box_y_max_px"] - table["box_y_min_px"]
            item["point_sizes"] = torch.from_numpy(np.stack([width, height], axis=1).astype(np.float32))
        return item
