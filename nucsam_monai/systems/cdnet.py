"""CDNet (He et al., ICCV 2021): masks, the direction in which each pixel sees its nucleus's centre, and centres."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import center_of_mass, find_objects
from skimage.segmentation import find_boundaries, watershed
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.systems.system import System, require_maps
from nucsam_monai.systems.unet_heads import SIZES, Maps, builder, logit_of_softmax
from nucsam_monai.utils.instances import connected_components, without_small
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances

DIRECTIONS = 8
_BACKGROUND, _INSIDE, _CONTOUR = range(3)
_MARKER_THRESHOLD, _MIN_MARKER_PX, _MIN_AREA_PX = 0.5, 5, 10


def cdnet_target(instances: np.ndarray, _classes: np.ndarray | None) -> np.ndarray:
    """Return ``(3, H, W)`` float32 (section 3.1 and 3.2).

    The channels are: 0 for background, 1 inside of a nucleus, 2 on its contour; 0 for background or 1..8 for the
    direction of the nucleus's centre, clockwise from the right; and how near the centre is, 1 there, 0 at the farthest
    pixel of the nucleus.
    """
    parts = np.where(find_boundaries(instances, mode="inner"), _CONTOUR, instances > 0)
    direction, nearness = np.zeros((2, *instances.shape), dtype=np.float32)
    for number, box in enumerate(find_objects(instances), start=1):
        if box is None:
            continue
        nucleus = instances[box] == number
        centre_y, centre_x = center_of_mass(nucleus)
        ys, xs = np.nonzero(nucleus)
        turns = np.arctan2(centre_y - ys, centre_x - xs) / (2 * np.pi)
        away = np.hypot(centre_y - ys, centre_x - xs)
        direction[box][nucleus] = 1 + np.rint(turns * DIRECTIONS) % DIRECTIONS
        nearness[box][nucleus] = 1 - away / max(away.max(), 1)
    return np.stack([parts.astype(np.float32), direction, nearness])


class CDNetLoss(nn.Module):
    """Compute cross-entropy of mask and direction plus mean squared error of the centre map (section 3.4)."""

    def forward(self, maps: Maps, target: Tensor) -> Tensor:
        """Return the scalar loss of the maps against ``(B, 3, H, W)`` of :func:`cdnet_target`."""
        masks = F.cross_entropy(maps["mask"], target[:, 0].long())
        directions = F.cross_entropy(maps["direction"], target[:, 1].long())
        centres = F.mse_loss(maps["centre"].sigmoid(), target[:, 2:].float())
        return masks + directions + centres


def direction_difference(probabilities: np.ndarray) -> np.ndarray:
    """Return by how much neighbours look in different directions, ``(H, W)`` in 0..1 (section 3.3).

    This is half of one minus the cosine between the mean directions of the two pixels next to a pixel, the larger of
    both axes: 1 where two nuclei touch, as their centres lie on opposite sides.

    Args:
        probabilities: ``(8, H, W)`` of the directions.

    Example:
        >>> right, left = np.eye(8)[0], np.eye(8)[4]
        >>> direction_difference(np.stack([left, left, right, right], axis=1)[:, None]).round(2)
        array([[0., 1., 1., 0.]])
    """
    angles = 2 * np.pi * np.arange(len(probabilities)) / len(probabilities)
    vectors = np.stack([np.tensordot(part(angles), probabilities, axes=1) for part in (np.sin, np.cos)])
    vectors /= np.maximum(np.linalg.norm(vectors, axis=0), 1e-6)
    padded = np.pad(vectors, ((0, 0), (1, 1), (1, 1)), mode="edge")
    vertical = (padded[:, :-2, 1:-1] * padded[:, 2:, 1:-1]).sum(axis=0)
    horizontal = (padded[:, 1:-1, :-2] * padded[:, 1:-1, 2:]).sum(axis=0)
    return np.clip((1 - np.minimum(vertical, horizontal)) / 2, 0, 1)


def cdnet_nuclei(maps: np.ndarray, threshold: float, _class_names: Sequence[str]) -> NucleiPrediction:
    """Return the nuclei that grow from where the mask is inside and neighbours look in one direction (section 3.3).

    Directions also differ at a centre; the centres' map takes that back.

    Args:
        maps: ``(11, H, W)`` probability of nucleus, of its inside, nearness of the centre, and of the 8 directions.
        threshold: threshold of the nucleus probability.
    """
    require_maps(maps, 3 + DIRECTIONS, "CDNet")
    nucleus, inside, centre = maps[:3]
    foreground = nucleus >= threshold
    difference = direction_difference(maps[3:]) * (1 - centre)
    certain = foreground & (inside * (1 - difference) >= _MARKER_THRESHOLD)
    markers = without_small(connected_components(certain), _MIN_MARKER_PX)
    nuclei = watershed(-centre, markers, mask=foreground, connectivity=2)
    return prediction_from_instances(without_small(nuclei, _MIN_AREA_PX), foreground=nucleus)


def _to_logits(maps: Maps) -> Tensor:
    mask = logit_of_softmax(maps["mask"])
    directions = logit_of_softmax(maps["direction"])
    return torch.cat([-mask[:, :1], mask[:, _INSIDE : _INSIDE + 1], maps["centre"], directions[:, 1:]], dim=1)


CDNET = System(
    build=builder({"mask": 3, "direction": 1 + DIRECTIONS, "centre": 1}, _to_logits),
    loss=lambda _dense: CDNetLoss(),
    target=cdnet_target,
    rule=cdnet_nuclei,
    sizes=SIZES,
)
