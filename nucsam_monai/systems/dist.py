"""DIST (Naylor et al., IEEE Transactions on Medical Imaging 38, 2019): regression of the distance to the background."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from scipy.ndimage import find_objects
from skimage.morphology import h_maxima
from skimage.segmentation import watershed
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.systems.system import System, require_maps
from nucsam_monai.systems.unet_heads import SIZES, Maps, builder
from nucsam_monai.utils.instances import connected_components, without_small
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances

FOREGROUND_PX = 0.5
"""A pixel is foreground from this distance on: half of that of a nucleus's outermost pixels."""
DYNAMIC_PX = 1.0
"""Two maxima are two nuclei if the way from one to the other goes down by this or more."""
_MIN_AREA_PX = 10


def dist_target(instances: np.ndarray, _classes: np.ndarray | None) -> np.ndarray:
    """Return ``(1, H, W)`` float32: the distance in pixels to the nearest pixel that is not of the nucleus.

    Section III-B. What lies beyond the image's border is not of the nucleus.
    """
    distance = np.zeros(instances.shape, dtype=np.float32)
    for number, box in enumerate(find_objects(instances), start=1):
        if box is not None:
            nucleus = np.pad(instances[box] == number, 1).astype(np.uint8)
            found = cv2.distanceTransform(nucleus, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
            np.maximum(distance[box], found, out=distance[box])
    return distance[None]


class DISTLoss(nn.Module):
    """Compute the mean squared error of the distance map (section III-B)."""

    def forward(self, maps: Maps, target: Tensor) -> Tensor:
        """Return the scalar loss of the map in pixels against ``(B, 1, H, W)`` of :func:`dist_target`."""
        return F.mse_loss(maps["distance"], target.float())


def dist_nuclei(maps: np.ndarray, threshold: float, _class_names: Sequence[str]) -> NucleiPrediction:
    """Return the basins of the distance map, one for each maximum that is dynamic enough (section III-C).

    Args:
        maps: ``(1, H, W)`` in 0..1, 0.5 at :data:`FOREGROUND_PX`; a distance d px is ``d / (d + 0.5)``.
        threshold: threshold of the map.
    """
    require_maps(maps, 1, "DIST")
    foreground = maps[0] >= threshold
    distance = FOREGROUND_PX * maps[0] / np.maximum(1 - maps[0], 1e-4)
    maxima = h_maxima(distance, DYNAMIC_PX) if foreground.any() else foreground
    markers = connected_components((maxima > 0) & foreground)
    # A component that is too shallow for a maximum is a nucleus as well.
    components = connected_components(foreground)
    empty = np.bincount(components[markers > 0], minlength=components.max(initial=0) + 1) == 0
    empty[0] = False
    markers = np.where(empty[components], markers.max(initial=0) + components, markers)
    nuclei = watershed(-distance, markers, mask=foreground, connectivity=2)
    return prediction_from_instances(without_small(nuclei, _MIN_AREA_PX), foreground=maps[0])


def _to_logits(maps: Maps) -> Tensor:
    return torch.log(maps["distance"].clamp_min(1e-4) / FOREGROUND_PX)


DIST = System(
    build=builder({"distance": 1}, _to_logits),
    loss=lambda _dense: DISTLoss(),
    target=dist_target,
    rule=dist_nuclei,
    sizes=SIZES,
)
