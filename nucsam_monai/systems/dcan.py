"""DCAN (Chen et al., Medical Image Analysis 36, 2017): nuclei and their contours, each learned by a branch."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from scipy.ndimage import binary_fill_holes
from skimage.segmentation import expand_labels, find_boundaries
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.systems.system import System, require_maps
from nucsam_monai.systems.unet_heads import SIZES, Maps, builder
from nucsam_monai.utils.instances import connected_components, without_small
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances

CONTOUR_RADIUS_PX = 1
"""The contour, two pixels wide, is widened by this: the paper's disc of 3 px fills small nuclei."""
_CONTOUR_THRESHOLD, _MIN_AREA_PX = 0.5, 10


def dcan_target(instances: np.ndarray, _classes: np.ndarray | None) -> np.ndarray:
    """Return ``(2, H, W)`` float32: nucleus and contour (section 2.3)."""
    contour = find_boundaries(instances, mode="thick").astype(np.uint8)
    contour = cv2.dilate(contour, _disc(CONTOUR_RADIUS_PX))
    return np.stack([instances > 0, contour > 0]).astype(np.float32)


class DCANLoss(nn.Module):
    """Compute cross-entropy of nucleus plus cross-entropy of contour (equation 2); weight decay is the optimizer's."""

    def forward(self, maps: Maps, target: Tensor) -> Tensor:
        """Return the scalar loss of the maps against ``(B, 2, H, W)`` of :func:`dcan_target`."""
        logits = torch.cat([maps["nucleus"], maps["contour"]], dim=1)
        return 2 * F.binary_cross_entropy_with_logits(logits, target.float())


def dcan_nuclei(maps: np.ndarray, threshold: float, _class_names: Sequence[str]) -> NucleiPrediction:
    """Return the components of what is nucleus and not contour, their holes filled and grown back to the outline.

    Section 2.3, equation 4. The paper grows by a disc of 3 px; here the growth stays within the foreground.

    Args:
        maps: ``(2, H, W)`` probability of nucleus and of contour.
        threshold: threshold of the nucleus probability; the contour's threshold is 0.5.
    """
    require_maps(maps, 2, "DCAN")
    foreground = maps[0] >= threshold
    inside = binary_fill_holes(foreground & (maps[1] < _CONTOUR_THRESHOLD)) & foreground
    cores = without_small(connected_components(inside), _MIN_AREA_PX)
    nuclei = expand_labels(cores, distance=2 + CONTOUR_RADIUS_PX) * foreground
    return prediction_from_instances(nuclei.astype(np.int32), foreground=maps[0])


def _disc(radius_px: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))


def _to_logits(maps: Maps) -> Tensor:
    return torch.cat([maps["nucleus"], maps["contour"]], dim=1)


DCAN = System(
    build=builder({"nucleus": 1, "contour": 1}, _to_logits),
    loss=lambda _dense: DCANLoss(),
    target=dcan_target,
    rule=dcan_nuclei,
    sizes=SIZES,
)
