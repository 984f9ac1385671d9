"""Turn HoVer-Net's probability and distance maps into nuclei."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.apps.pathology.transforms.post.array import (
    GenerateDistanceMap,
    GenerateInstanceBorder,
    GenerateWatershedMarkers,
    GenerateWatershedMask,
    Watershed,
)
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_numpy

from nucsam_monai.utils.components import connected_components
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import prediction_from_instances


class HoVerNetInstancesd(MapTransform):
    """Part touching nuclei where the distance maps jump, by a watershed (HoVer-Net, section 3.2).

    The steps and their numbers are MONAI's, which has them from the authors. Images where the maps say nothing,
    such as those without nuclei, get the 8-connected components of the foreground.

    Args:
        keys: ``(3, H, W)`` in 0..1 of probability, horizontal and vertical distance, as
            :class:`~nucsam_monai.networks.baselines.HoVerNetBranches` gives them through a sigmoid. A
            :class:`~nucsam_monai.utils.prediction.NucleiPrediction` takes their place.
        threshold: a pixel is foreground from this probability on.
        min_area_px: smaller nuclei are left out.

    Raises:
        ConfigurationError: when called, not three channels.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        threshold: float = 0.5,
        min_area_px: int = 10,
    ) -> None:
        super().__init__(keys)
        self.threshold = threshold
        self.mask = GenerateWatershedMask(
            activation=torch.nn.Identity(), threshold=threshold, min_object_size=min_area_px
        )
        self.border = GenerateInstanceBorder(kernel_size=5)
        self.distance = GenerateDistanceMap()
        self.markers = GenerateWatershedMarkers(threshold=0.4, radius=2, min_object_size=min_area_px)
        self.watershed = Watershed(connectivity=1)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the nuclei."""
        item = dict(data)
        for key in self.key_iterator(item):
            maps = convert_to_numpy(item[key])
            if maps.ndim != 3 or len(maps) != 3:
                raise ConfigurationError(
                    f"{key}: expected the three channels (3, H, W) of HoVer-Net, found shape {maps.shape}."
                )
            item[key] = prediction_from_instances(self._instances(maps), foreground=maps[0])
        return item

    def _instances(self, maps: np.ndarray) -> np.ndarray:
        mask = self.mask(maps[:1])
        distances = 2 * maps[1:] - 1
        if not mask.any() or any(np.ptp(one) == 0 for one in distances):
            return connected_components(mask[0] > 0)
        border = self.border(mask, distances)
        labels = self.watershed(self.distance(mask, border), mask, self.markers(mask, border))[0]
        _, contiguous = np.unique(np.append(labels.ravel(), 0), return_inverse=True)
        return contiguous[:-1].reshape(labels.shape).astype(np.int32)
