"""StarDist (Schmidt et al., MICCAI 2018): star-convex polygons of 32 rays, and how central each pixel is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import find_objects, maximum_filter
from skimage.draw import polygon
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.systems.system import System, require_maps
from nucsam_monai.systems.unet_heads import SIZES, Maps, builder
from nucsam_monai.transforms.targets import nucleus_distance
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances

RAYS = 32
LARGEST_RAY_PX = 256.0
"""In evaluation a ray is given as a share of this."""
NMS_THRESHOLD = 0.4
"""Of two polygons whose intersection over union is larger the one with the higher probability is kept."""

_ANGLES = 2 * np.pi * np.arange(RAYS) / RAYS  # clockwise from the right, as y points down
_DIRECTIONS_YX = np.stack([np.sin(_ANGLES), np.cos(_ANGLES)], axis=1)


def ray_lengths(instances: np.ndarray) -> np.ndarray:
    """Return how far each pixel's nucleus reaches in each direction, ``(32, H, W)`` float32 in pixels (section 2.1).

    A ray is followed in steps of one pixel. It ends half a step before the first step that is nearest to a pixel of
    something else, or outside the image. In the background all rays are 0.

    Args:
        instances: ``(H, W)`` integers, 0 = background.

    Example:
        >>> ray_lengths(np.array([[0, 7, 7, 7, 0]]))[[0, 16], 0]
        array([[0. , 2.5, 1.5, 0.5, 0. ],
               [0. , 0.5, 1.5, 2.5, 0. ]], dtype=float32)
    """
    rays = np.zeros((RAYS, *instances.shape), dtype=np.float32)
    boxes = [box for box in find_objects(instances) if box is not None]
    if not boxes:
        return rays
    reach = 2 + int(np.ceil(max(np.hypot(*(axis.stop - axis.start for axis in box)) for box in boxes)))
    padded = np.pad(instances, reach)
    flat, start = padded.ravel(), np.flatnonzero(padded)
    inside = np.flatnonzero(instances)
    for ray, direction in zip(rays, _DIRECTIONS_YX, strict=True):
        length = np.empty(len(start), dtype=np.float32)
        going = np.arange(len(start))
        step = 0
        while len(going):
            step += 1
            rows, columns = np.rint(step * direction).astype(np.int64)
            same = flat[start[going] + rows * padded.shape[1] + columns] == flat[start[going]]
            length[going[~same]] = step - 0.5
            going = going[same]
        ray.ravel()[inside] = length
    return rays


def stardist_target(instances: np.ndarray, _classes: np.ndarray | None) -> np.ndarray:
    """Return ``(33, H, W)`` float32: object probability and rays.

    The probability is the distance to the nearest pixel that is not of the nucleus, as a share of the nucleus's
    largest (section 2.1).
    """
    return np.concatenate([nucleus_distance(instances)[None], ray_lengths(instances)])


class StarDistLoss(nn.Module):
    """Compute cross-entropy of the probability plus mean absolute error of the rays, weighted by it (section 2.1).

    Rays outside of nuclei are drawn to 0 with a small weight, as in the authors' regularisation of later work.

    Args:
        ray_weight: weight of the rays' loss.
        background: weight of a background pixel's rays.
    """

    def __init__(self, ray_weight: float = 0.2, background: float = 1e-4) -> None:
        super().__init__()
        self.ray_weight = ray_weight
        self.background = background

    def forward(self, maps: Maps, target: Tensor) -> Tensor:
        """Return the scalar loss of the maps against ``(B, 33, H, W)`` of :func:`stardist_target`.

        Every map of rays counts: ``rays``, and ``refined`` where there is one.
        """
        probability, rays = target[:, :1].float(), target[:, 1:].float()
        loss = F.binary_cross_entropy_with_logits(maps["probability"], probability)
        weight = probability + self.background * (probability == 0)
        for found in (maps[name] for name in ("rays", "refined") if name in maps):
            error = (weight * (found - rays).abs()).mean(dim=1).sum() / weight.sum()
            loss = loss + self.ray_weight * error
        return loss


@dataclass(frozen=True)
class StarPolygon:
    """The pixels of one polygon.

    Attributes:
        rows: rows of its pixels.
        columns: columns of its pixels.
        box: rows and columns that it lies between, ``(top, left, bottom, right)``, both ends inclusive.
    """

    rows: np.ndarray
    columns: np.ndarray
    box: tuple[int, int, int, int]

    def overlap(self, other: "StarPolygon", width: int) -> float:
        """Return the intersection over union of two polygons of an image this wide."""
        mine, its = (one.rows * width + one.columns for one in (self, other))
        shared = len(np.intersect1d(mine, its, assume_unique=True))
        return shared / (len(mine) + len(its) - shared)


def star_polygon(row: int, column: int, rays: np.ndarray, shape: tuple[int, int]) -> StarPolygon | None:
    """Return the pixels whose centres lie in a polygon; None if there are none within the image.

    Args:
        row: row of the pixel that the rays start from.
        column: column of that pixel.
        rays: ``(32,)`` in pixels.
        shape: height and width of the image.
    """
    corners = np.array([row, column]) + rays[:, None] * _DIRECTIONS_YX
    rows, columns = polygon(corners[:, 0], corners[:, 1], shape)
    if not len(rows):
        return None
    return StarPolygon(rows, columns, (rows.min(), columns.min(), rows.max(), columns.max()))


def paint_stars(probability: np.ndarray, rays: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the polygons that are left by non-maximum suppression as a label map, and their probabilities.

    Polygons start from the pixels that are more probable than, or as probable as, their eight neighbours. The paper
    starts them from every pixel; those next to a maximum give nearly its polygon and are suppressed.

    Args:
        probability: ``(H, W)`` of being an object.
        rays: ``(32, H, W)`` in pixels.
        threshold: least probability of a polygon.

    Returns:
        ``(H, W)`` int32 with ids 1..n, the more probable polygon on top, and ``(n,)`` float32.
    """
    shape = (probability.shape[0], probability.shape[1])
    peaks = (probability >= threshold) & (probability == maximum_filter(probability, size=3, mode="nearest"))
    rows, columns = np.nonzero(peaks)
    order = np.argsort(-probability[rows, columns], kind="stable")
    kept: list[StarPolygon] = []
    boxes, scores = np.empty((len(order), 4), dtype=np.int64), []
    for row, column in zip(rows[order], columns[order], strict=True):
        star = star_polygon(row, column, rays[:, row, column], shape)
        if star is None:
            continue
        top, left, bottom, right = star.box
        old = boxes[: len(kept)]
        apart = (old[:, 0] > bottom) | (old[:, 2] < top) | (old[:, 1] > right) | (old[:, 3] < left)
        near = np.flatnonzero(~apart)
        if all(star.overlap(kept[one], shape[1]) <= NMS_THRESHOLD for one in near):
            boxes[len(kept)] = star.box
            kept.append(star)
            scores.append(probability[row, column])
    painted = np.zeros(shape, dtype=np.int32)
    for number in range(len(kept), 0, -1):
        painted[kept[number - 1].rows, kept[number - 1].columns] = number
    visible, contiguous = np.unique(np.append(painted.ravel(), 0), return_inverse=True)
    label_map = contiguous[:-1].reshape(shape).astype(np.int32)
    return label_map, np.array(scores, dtype=np.float32)[visible[1:] - 1]


def stardist_nuclei(maps: np.ndarray, threshold: float, _class_names: Sequence[str]) -> NucleiPrediction:
    """Return the polygons of :func:`paint_stars` with their probabilities as scores; they are the foreground.

    Args:
        maps: ``(33, H, W)``: object probability, and rays as shares of :data:`LARGEST_RAY_PX`.
        threshold: threshold of the object probability.
    """
    require_maps(maps, 1 + RAYS, "StarDist")
    label_map, scores = paint_stars(maps[0], LARGEST_RAY_PX * maps[1:], threshold)
    return prediction_from_instances(label_map, foreground=(label_map > 0).astype(np.float32), scores=scores)


def rays_to_logits(name: str) -> Callable[[Maps], Tensor]:
    """Return what makes the logits of :func:`stardist_nuclei`'s maps of a network's, with the rays of this name."""

    def to_logits(maps: Maps) -> Tensor:
        share = (maps[name] / LARGEST_RAY_PX).clamp(1e-5, 1 - 1e-5)
        return torch.cat([maps["probability"], torch.logit(share)], dim=1)

    return to_logits


STARDIST = System(
    build=builder({"probability": 1, "rays": RAYS}, rays_to_logits("rays")),
    loss=lambda _dense: StarDistLoss(),
    target=stardist_target,
    rule=stardist_nuclei,
    has_foreground=False,
    sizes=SIZES,
)
