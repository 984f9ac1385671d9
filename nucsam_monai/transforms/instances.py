"""From instance maps to training targets and prompts, and from probabilities back to instances."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_dst_type, convert_to_numpy

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.instances import (
    MIN_DISTANCE_PX,
    InstanceRule,
    check_instance_rule,
    instances_of_foreground,
)
from nucsam_monai.utils.prediction import prediction_from_instances


class ForegroundMaskd(MapTransform):
    """Add the binary mask of all nuclei, float32 of the instance map's shape ``(1, H, W)``.

    Args:
        keys: the instance map.
        output_key: key of the mask.
    """

    def __init__(self, keys: KeysCollection = "instances", output_key: str = "label") -> None:
        super().__init__(keys)
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the mask added."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[self.output_key] = convert_to_dst_type(item[key] > 0, item[key], dtype=torch.float32)[0]
        return item


class NucleusPointsd(Randomizable, MapTransform):
    """Add one foreground point per nucleus: prompts from the ground truth.

    A point is the nucleus's centroid, or its pixel nearest to the centroid where that lies outside. Of more
    than ``max_points`` nuclei a random selection is taken; fewer are padded with label -1.

    Args:
        keys: the instance map ``(1, H, W)``.
        max_points: number of points K of every image.
        seed: of the selection, which then depends on the image alone and is the same every time; None draws
            from the transform's random state.

    The item gains ``points`` ``(K, 2)`` float32 as (x, y) in pixels and ``point_labels`` ``(K,)`` int64.
    """

    def __init__(
        self, keys: KeysCollection = "instances", max_points: int = 256, seed: int | None = None
    ) -> None:
        MapTransform.__init__(self, keys)
        self.max_points = max_points
        self.seed = seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the points added."""
        item = dict(data)
        for key in self.key_iterator(item):
            found = nucleus_points(convert_to_numpy(item[key])[0])
            if len(found) > self.max_points:
                random = self.R if self.seed is None else np.random.RandomState(self.seed)
                found = found[random.permutation(len(found))[: self.max_points]]
            points = np.zeros((self.max_points, 2), dtype=np.float32)
            labels = np.full(self.max_points, -1, dtype=np.int64)
            points[: len(found)], labels[: len(found)] = found, 1
            item["points"], item["point_labels"] = torch.from_numpy(points), torch.from_numpy(labels)
        return item


class ProbabilityToInstancesd(MapTransform):
    """Add the instances of a probability: the components of its foreground, whole or cut where nuclei touch.

    Args:
        keys: the probability ``(1, H, W)``.
        output_key: key of the ``(1, H, W)`` int32 label map.
        threshold: a pixel is foreground from this probability on.
        instances: ``components`` takes the 8-connected components as they are, ``watershed`` cuts them, see
            :func:`~nucsam_monai.utils.instances.watershed_instances`.
        min_distance_px: for ``watershed``: nuclei that touch are told apart when their centres are further
            apart than this, about the radius of the smallest nucleus.

    Raises:
        ConfigurationError: unknown ``instances``, or a distance below one pixel; or, when called, a
            probability that has not exactly one channel.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        output_key: str = "pred_instances",
        threshold: float = 0.5,
        instances: InstanceRule = "components",
        min_distance_px: int = MIN_DISTANCE_PX,
    ) -> None:
        super().__init__(keys)
        check_instance_rule(instances, min_distance_px)
        self.output_key = output_key
        self.threshold = threshold
        self.instances: InstanceRule = instances
        self.min_distance_px = min_distance_px

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the label map added."""
        item = dict(data)
        for key in self.key_iterator(item):
            probability = convert_to_numpy(item[key])
            if probability.ndim != 3 or len(probability) != 1:
                raise ConfigurationError(
                    f"{key}: expected one probability (1, H, W), found shape {probability.shape}. "
                    "Masks of several queries have to be merged first."
                )
            foreground = probability[0] >= self.threshold
            label_map = instances_of_foreground(foreground, self.instances, self.min_distance_px)
            item[self.output_key] = torch.from_numpy(label_map)[None]
        return item


def nucleus_points(instances: np.ndarray) -> np.ndarray:
    """Return one pixel (x, y) inside each nucleus of a ``(H, W)`` label map, as ``(n, 2)`` float32.

    Example:
        >>> nucleus_points(np.array([[0, 5, 5, 5]]))
        array([[2., 0.]], dtype=float32)
    """
    table = prediction_from_instances(instances).table
    points = np.zeros((len(table), 2), dtype=np.float32)
    for row, nucleus in enumerate(table):
        x0, x1 = nucleus["box_x_min_px"], nucleus["box_x_max_px"]
        y0, y1 = nucleus["box_y_min_px"], nucleus["box_y_max_px"]
        ys, xs = np.nonzero(instances[y0:y1, x0:x1] == nucleus["id"])
        away = (xs + x0 - nucleus["centroid_x_px"]) ** 2 + (ys + y0 - nucleus["centroid_y_px"]) ** 2
        nearest = int(np.argmin(away))
        points[row] = xs[nearest] + x0, ys[nearest] + y0
    return points
