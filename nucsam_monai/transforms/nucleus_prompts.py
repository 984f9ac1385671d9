"""One prompt, one nucleus: points drawn inside the nuclei of a crop, and their masks."""

from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_numpy

from nucsam_monai.transforms.instances import nucleus_points
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from nucsam_monai.utils.prediction import prediction_from_instances

_NUCLEUS, _OTHER, _PADDING, _CORNERS = 1, 0, -1, (2, 3)
_JITTER = 0.1
"""Largest move of a side of a random box, as a share of the box ("Segment Anything", appendix A)."""


class PointPrompt(NamedTuple):
    """The prompts of n nuclei.

    Attributes:
        points: ``(n, 1 + K, 2)`` float32 as (x, y) in pixels: the nucleus's own, then its neighbours'.
        labels: ``(n, 1 + K)`` int64: 1 the nucleus, 0 a neighbour, -1 padding; 2 and 3 the corners of a box.
    """

    points: np.ndarray
    labels: np.ndarray


class NucleusPromptsd(Randomizable, MapTransform):
    """Draw some nuclei of a crop, one point in each, and K points in their neighbours (PromptNucSeg, training).

    Every nucleus of the crop gets one point. A chosen nucleus is prompted by its own; its negatives are the
    nearest points of all other nuclei, chosen or not. Some may be prompted by a box instead, drawn as carelessly as a
    user draws: its sides are moved at random.

    Args:
        keys: the instance map ``(1, H, W)``; of several only the last one's prompts stay.
        max_masks: number of nuclei that are chosen at random, or all where there are no more; None takes all.
        point: ``random`` draws any pixel of the nucleus; ``centroid`` takes its centroid, or the nucleus's
            pixel nearest to it.
        negatives: number K of negatives of each nucleus; fewer neighbours are padded with label -1.
        negatives_prob: share of the prompts that keep their negatives; the others are padded.
        boxes_prob: share of the prompts that are boxes. With boxes every prompt has one more point: the second corner
            of a box, or the padding that SAM appends to points.
        classes_key: key of the item's ``{instance id: class id}``, as
            :func:`~nucsam_monai.data.label_files.read_classes` returns it; None for no classes.

    Raises:
        ConfigurationError: an unknown ``point``, or a number outside its range.
        DatasetError: when called, a nucleus without a class.

    The item gains ``points`` ``(Z, 1 + K, 2)`` float32, ``point_labels`` ``(Z, 1 + K)`` int64, ``masks``
    ``(Z, H, W)`` uint8 and, with classes, ``class_ids`` ``(Z,)`` int64; Z is 0 where there are no nuclei.
    """

    def __init__(
        self,
        keys: KeysCollection = "instances",
        max_masks: int | None = 20,
        *,
        point: Literal["random", "centroid"] = "random",
        negatives: int = 0,
        negatives_prob: float = 1.0,
        boxes_prob: float = 0.0,
        classes_key: str | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        if point not in ("random", "centroid"):
            raise ConfigurationError(f"point '{point}': expected 'random' or 'centroid'.")
        if (max_masks is not None and max_masks < 1) or negatives < 0:
            raise ConfigurationError(
                "prompts: expected max_masks from 1 on or null and negatives from 0 on, found "
                f"{max_masks} and {negatives}."
            )
        if not (0 <= negatives_prob <= 1 and 0 <= boxes_prob <= 1):
            raise ConfigurationError(
                "prompts: expected negatives_prob and boxes_prob from 0 to 1, found "
                f"{negatives_prob} and {boxes_prob}."
            )
        self.max_masks = max_masks
        self.point = point
        self.negatives = negatives
        self.negatives_prob = negatives_prob
        self.boxes_prob = boxes_prob
        self.classes_key = classes_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with prompts and masks added."""
        item = dict(data)
        for key in self.key_iterator(item):
            instances = convert_to_numpy(item[key])[0]
            ids = np.unique(instances)
            ids = ids[ids > 0]
            own = nucleus_points(instances) if self.point == "centroid" else random_points(instances, self.R)
            chosen = self._choose(len(ids))
            points, labels = prompt_with_neighbours(own, chosen, self.negatives)
            if self.negatives:
                labels[self.R.random_sample(len(chosen)) >= self.negatives_prob, 1:] = _PADDING
            if self.boxes_prob:
                points, labels = self._with_boxes(
                    points, labels, own_boxes(instances)[chosen], instances.shape
                )
            item["points"], item["point_labels"] = torch.from_numpy(points), torch.from_numpy(labels)
            masks = instances[None] == ids[chosen][:, None, None]
            item["masks"] = torch.from_numpy(masks.astype(np.uint8))
            if self.classes_key is not None:
                item["class_ids"] = _classes_of(ids[chosen], item[self.classes_key])
        return item

    def _with_boxes(
        self, points: np.ndarray, labels: np.ndarray, boxes: np.ndarray, size: tuple[int, ...]
    ) -> PointPrompt:
        """Append padding to the prompts, and put a box ``(Z, 2, 2)`` in the place of some."""
        points = np.concatenate([points, np.zeros_like(points[:, :1])], axis=1)
        labels = np.concatenate([labels, np.full_like(labels[:, :1], _PADDING)], axis=1)
        boxed = self.R.random_sample(len(boxes)) < self.boxes_prob
        drawn = jittered_boxes(boxes, self.R).clip(-0.5, np.array(size[::-1], dtype=np.float32) - 0.5)
        points[boxed], labels[boxed] = 0, _PADDING
        points[boxed, :2], labels[boxed, :2] = drawn[boxed], _CORNERS
        return PointPrompt(points, labels)

    def _choose(self, nuclei: int) -> np.ndarray:
        if self.max_masks is None or nuclei <= self.max_masks:
            return np.arange(nuclei)
        return self.R.permutation(nuclei)[: self.max_masks]


def random_points(instances: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Return a uniformly random pixel (x, y) of each nucleus, ``(n, 2)`` float32 in the order of the ids.

    Args:
        instances: ``(H, W)`` label map; 0 is background.
        random: the source of randomness, asked for n numbers.

    Example:
        >>> random_points(np.array([[0, 0, 5]]), np.random.RandomState(0))
        array([[2., 0.]], dtype=float32)
    """
    pixels = np.flatnonzero(instances)
    values = instances.ravel()[pixels]
    pixels = pixels[np.argsort(values, kind="stable")]
    _, starts, sizes = np.unique(np.sort(values), return_index=True, return_counts=True)
    drawn = starts + (random.random_sample(len(sizes)) * sizes).astype(np.int64)
    ys, xs = np.divmod(pixels[drawn], instances.shape[1])
    return np.stack([xs, ys], axis=1).astype(np.float32)


def own_boxes(instances: np.ndarray) -> np.ndarray:
    """Return the corners ``(n, 2, 2)`` of each nucleus' box, its outermost pixels' outer edges.

    Example:
        >>> own_boxes(np.array([[0, 5, 5]]))
        array([[[ 0.5, -0.5],
                [ 2.5,  0.5]]], dtype=float32)
    """
    table = prediction_from_instances(instances).table
    names = ("box_x_min_px", "box_y_min_px", "box_x_max_px", "box_y_max_px")
    corners = np.stack([table[name] for name in names], axis=-1).astype(np.float32)
    return corners.reshape(-1, 2, 2) - np.float32(0.5)


def jittered_boxes(boxes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Move every side of ``(n, 2, 2)`` boxes at random."""
    sides = (boxes[:, 1] - boxes[:, 0])[:, None]
    return (boxes + random.uniform(-_JITTER, _JITTER, boxes.shape) * sides).astype(np.float32)


def prompt_with_neighbours(points: np.ndarray, chosen: np.ndarray, negatives: int) -> PointPrompt:
    """Prompt chosen nuclei by their own points, and by the nearest points of others as negatives.

    Args:
        points: ``(n, 2)`` one point (x, y) of every nucleus.
        chosen: ``(Z,)`` indices of nuclei.
        negatives: number K of negatives; a nucleus with fewer neighbours is padded.

    Example:
        >>> points = np.array([[0, 0], [9, 0], [2, 0]], dtype=np.float32)
        >>> prompt_with_neighbours(points, np.array([0]), negatives=1).points
        array([[[0., 0.],
                [2., 0.]]], dtype=float32)
    """
    prompts = np.zeros((len(chosen), 1 + negatives, 2), dtype=np.float32)
    labels = np.full((len(chosen), 1 + negatives), _PADDING, dtype=np.int64)
    prompts[:, 0], labels[:, 0] = points[chosen], _NUCLEUS
    found = min(negatives, len(points) - 1)
    if found > 0:
        away = ((points[chosen][:, None] - points[None]) ** 2).sum(axis=2)  # (Z, n)
        away[np.arange(len(chosen)), chosen] = np.inf
        nearest = np.argsort(away, axis=1, kind="stable")[:, :found]
        prompts[:, 1 : 1 + found], labels[:, 1 : 1 + found] = points[nearest], _OTHER
    return PointPrompt(prompts, labels)


def _classes_of(ids: np.ndarray, classes: Mapping[int, int]) -> torch.Tensor:
    if missing := [int(value) for value in ids if int(value) not in classes]:
        raise DatasetError(f"classes: no class for instances {missing[:5]} ({len(missing)} in all).")
    return torch.tensor([classes[int(value)] for value in ids], dtype=torch.int64)
