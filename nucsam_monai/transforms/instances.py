"""From instance maps to training targets and prompts, and from probabilities back to instances."""

from collections.abc import Hashable, Mapping
from dataclasses import fields
from typing import Any

import cv2
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_dst_type, convert_to_numpy, convert_to_tensor
from scipy.ndimage import find_objects

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.instances import (
    MIN_DISTANCE_PX,
    DistanceRule,
    InstanceRule,
    check_instance_rule,
    distance_instances,
    distance_scores,
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


class NucleusDistanced(MapTransform):
    """Add the distance map that parts touching nuclei, float32 ``(1, H, W)``; see :func:`nucleus_distance`.

    Being relative to each nucleus, the map is the same at every magnification: it may be computed once per image,
    kept, and be cropped and resized with it.

    Args:
        keys: the instance map ``(1, H, W)``.
        output_key: key of the map.
    """

    def __init__(self, keys: KeysCollection = "instances", output_key: str = "distance") -> None:
        super().__init__(keys)
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the map added."""
        item = dict(data)
        for key in self.key_iterator(item):
            instances = convert_to_numpy(item[key])[0].astype(
                np.int32, copy=False
            )  # resampling gives float32
            item[self.output_key] = torch.from_numpy(nucleus_distance(instances))[None]
        return item


class DistanceTargetd(MapTransform):
    """Add the distance map to the training target, as its last channel.

    A map that was made before the image was cropped is taken; where an item has none, it is made of the instances as
    they are now.

    Args:
        keys: the target ``(n, H, W)``.
        distance_key: key of the map.
        instances_key: key of the instance map ``(1, H, W)``.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        distance_key: str = "distance",
        instances_key: str = "instances",
    ) -> None:
        super().__init__(keys)
        self.distance_key = distance_key
        self.make = NucleusDistanced(instances_key, distance_key)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``(n + 1, H, W)`` targets."""
        item = dict(data)
        distance = (item if self.distance_key in item else self.make(item))[self.distance_key]
        for key in self.key_iterator(item):
            item[key] = torch.cat([convert_to_tensor(item[key], track_meta=False), distance])
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
    """Turn a probability into nuclei: the components of its foreground, whole or cut where nuclei touch.

    The nuclei score their mean probability, with ``distance`` see
    :func:`~nucsam_monai.utils.instances.distance_scores`.

    Args:
        keys: the probability ``(1, H, W)``; for ``distance`` ``(2, H, W)``, foreground and distance map. A
            :class:`~nucsam_monai.utils.prediction.NucleiPrediction` takes its place.
        threshold: a pixel is foreground from this probability on.
        instances: ``components`` takes the 8-connected components as they are, ``watershed`` cuts them, see
            :func:`~nucsam_monai.utils.instances.watershed_instances`; ``distance`` parts them by the distance map, see
            :func:`~nucsam_monai.utils.instances.distance_instances`.
        min_distance_px: for ``watershed``: nuclei that touch are told apart when their centres are further
            apart than this, about the radius of the smallest nucleus.
        distance_rule: for ``distance``: values of :class:`~nucsam_monai.utils.instances.DistanceRule` other than the
            threshold.

    Raises:
        ConfigurationError: unknown ``instances`` or ``distance_rule``, a threshold that is not a number, or a distance
            below one pixel; or, when called, a probability without the channels of the rule.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        threshold: float = 0.5,
        instances: InstanceRule = "components",
        min_distance_px: int = MIN_DISTANCE_PX,
        distance_rule: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(keys)
        check_instance_rule(instances, min_distance_px)
        if not isinstance(threshold, (int, float)):
            raise ConfigurationError(f"threshold {threshold!r}: expected a number from 0 to 1.")
        self.threshold = threshold
        self.instances: InstanceRule = instances
        self.min_distance_px = min_distance_px
        try:
            self.distance_rule = DistanceRule(threshold=threshold, **(distance_rule or {}))
        except TypeError as error:
            names = ", ".join(one.name for one in fields(DistanceRule) if one.name != "threshold")
            raise ConfigurationError(
                f"distance_rule {distance_rule!r}: expected values of {names}."
            ) from error

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the nuclei."""
        item = dict(data)
        channels = 2 if self.instances == "distance" else 1
        for key in self.key_iterator(item):
            probability = convert_to_numpy(item[key])
            if probability.ndim != 3 or len(probability) != channels:
                raise ConfigurationError(
                    f"{key}: expected ({channels}, H, W) for instances '{self.instances}', found shape "
                    f"{probability.shape}. Choose the rule that the weights were trained for."
                )
            foreground, scores = probability[0], None
            if self.instances == "distance":
                label_map = distance_instances(foreground, probability[1], self.distance_rule)
                scores = distance_scores(label_map, foreground, probability[1])
            else:
                mask = foreground >= self.threshold
                label_map = instances_of_foreground(mask, self.instances, self.min_distance_px)
            item[key] = prediction_from_instances(label_map, foreground=foreground, scores=scores)
        return item


class LabelMapToPredictiond(MapTransform):
    """Turn a label map and the score of each pixel's nucleus into nuclei.

    Args:
        keys: a mapping of ``instances`` ``(1, H, W)`` and ``score`` ``(1, H, W)``, as
            :class:`~nucsam_monai.inferers.AutomaticMaskInferer` gives them. A
            :class:`~nucsam_monai.utils.prediction.NucleiPrediction` takes its place.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the nuclei."""
        item = dict(data)
        for key in self.key_iterator(item):
            instances, score = (convert_to_numpy(item[key][name])[0] for name in ("instances", "score"))
            item[key] = prediction_from_instances(instances, foreground=score)
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


def nucleus_distance(instances: np.ndarray) -> np.ndarray:
    """Return how deep in its nucleus each pixel lies: 1 at the deepest place of every nucleus, 0 outside.

    This is the Euclidean distance to the nearest pixel outside of the nucleus, divided by its maximum in that nucleus
    (Naylor et al., "Segmentation of Nuclei in Histopathology Images by Deep Regression of the Distance Map", 2019,
    who leave out the division). The image's border does not bound a nucleus: what is cut there goes on.

    Args:
        instances: ``(H, W)`` integers, 0 = background.

    Returns:
        ``(H, W)`` float32 in [0, 1].

    Example:
        >>> nucleus_distance(np.array([[0, 0, 0, 0, 0], [0, 7, 7, 7, 0]])).round(1)[1]
        array([0., 1., 1., 1., 0.], dtype=float32)
    """
    distance = np.zeros(instances.shape, dtype=np.float32)
    height, width = instances.shape
    for index, box in enumerate(find_objects(instances)):
        if box is None:
            continue
        (y0, y1), (x0, x1) = ((axis.start, axis.stop) for axis in box)
        around = slice(max(0, y0 - 1), min(height, y1 + 1)), slice(max(0, x0 - 1), min(width, x1 + 1))
        nucleus = np.asarray(instances[around] == index + 1, dtype=np.uint8)
        if nucleus.all():  # the nucleus fills the image
            squared = np.ones(nucleus.shape, dtype=np.float32)
        else:
            # OpenCV's last bit changes from call to call; squares of distances between pixels are whole numbers.
            squared = np.rint(cv2.distanceTransform(nucleus, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) ** 2)
        distance[around] = np.where(nucleus, np.sqrt(squared / squared.max()), distance[around])
    return distance
