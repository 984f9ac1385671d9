"""Turn the maps that networks give into instances."""

from collections.abc import Hashable, Mapping
from dataclasses import fields
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

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.instances import (
    MIN_DISTANCE_PX,
    DistanceRule,
    InstanceRule,
    check_instance_rule,
    connected_components,
    distance_instances,
    distance_scores,
    instances_of_foreground,
)
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances


class ProbabilityToInstancesd(MapTransform):
    """Add the instances of a probability: the components of its foreground, whole or cut where nuclei touch.

    Args:
        keys: the probability ``(1, H, W)``; for ``distance`` ``(2, H, W)``, foreground and distance map, of which the
            foreground stays.
        output_key: key of the ``(1, H, W)`` int32 label map.
        scores_key: key of the scores ``(n,)`` of the nuclei, float32 and ordered by id, which ``distance`` adds, see
            :func:`~nucsam_monai.utils.instances.distance_scores`.
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
            below one pixel; or, when called, a
            probability that has not the channels of the rule.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        output_key: str = "pred_instances",
        threshold: float = 0.5,
        instances: InstanceRule = "components",
        min_distance_px: int = MIN_DISTANCE_PX,
        distance_rule: Mapping[str, Any] | None = None,
        scores_key: str = "pred_scores",
    ) -> None:
        super().__init__(keys)
        check_instance_rule(instances, min_distance_px)
        if not isinstance(threshold, (int, float)):
            raise ConfigurationError(f"threshold {threshold!r}: expected a number from 0 to 1.")
        self.output_key = output_key
        self.scores_key = scores_key
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
        """Return the item with the label map added."""
        item = dict(data)
        channels = 2 if self.instances == "distance" else 1
        for key in self.key_iterator(item):
            probability = convert_to_numpy(item[key])
            if probability.ndim != 3 or len(probability) != channels:
                raise ConfigurationError(
                    f"{key}: expected ({channels}, H, W) for instances '{self.instances}', found shape "
                    f"{probability.shape}. Choose the rule that the weights were trained for."
                )
            if self.instances == "distance":
                foreground, distance = probability
                label_map = distance_instances(foreground, distance, self.distance_rule)
                item[self.scores_key] = torch.from_numpy(distance_scores(label_map, foreground, distance))
                item[key] = item[key][:1]
            else:
                mask = probability[0] >= self.threshold
                label_map = instances_of_foreground(mask, self.instances, self.min_distance_px)
            item[self.output_key] = torch.from_numpy(label_map)[None]
        return item


def prediction_of(output: Mapping[Hashable, Any]) -> NucleiPrediction:
    """Return the nuclei that an evaluator's output holds.

    Args:
        output: with a ``NucleiPrediction`` under ``pred``; or with the probability ``(1, H, W)`` there, the label map
            ``(1, H, W)`` under ``pred_instances``, and perhaps the scores of the nuclei ``(n,)`` under ``pred_scores``,
            as :class:`ProbabilityToInstancesd` leaves them.
    """
    prediction = output["pred"]
    if isinstance(prediction, NucleiPrediction):
        return prediction
    return prediction_from_instances(
        convert_to_numpy(output["pred_instances"])[0],
        foreground=convert_to_numpy(prediction)[0],
        scores=convert_to_numpy(output["pred_scores"]) if "pred_scores" in output else None,
    )


class HoVerNetInstancesd(MapTransform):
    """Part touching nuclei where the distance maps jump, by a watershed (HoVer-Net, section 3.2).

    The steps and their numbers are MONAI's, which has them from the authors. Images where the maps say nothing,
    such as those without nuclei, get the 8-connected components of the foreground.

    Args:
        keys: ``(3, H, W)`` in 0..1 of probability, horizontal and vertical distance, as
            :class:`~nucsam_monai.networks.baselines.HoVerNetBranches` gives them through a sigmoid. The
            probability alone, ``(1, H, W)``, stays under the key.
        output_key: key of the ``(1, H, W)`` int32 label map.
        threshold: a pixel is foreground from this probability on.
        min_area_px: smaller nuclei are left out.

    Raises:
        ConfigurationError: when called, not three channels.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        output_key: str = "pred_instances",
        threshold: float = 0.5,
        min_area_px: int = 10,
    ) -> None:
        super().__init__(keys)
        self.output_key = output_key
        self.threshold = threshold
        self.mask = GenerateWatershedMask(
            activation=torch.nn.Identity(), threshold=threshold, min_object_size=min_area_px
        )
        self.border = GenerateInstanceBorder(kernel_size=5)
        self.distance = GenerateDistanceMap()
        self.markers = GenerateWatershedMarkers(threshold=0.4, radius=2, min_object_size=min_area_px)
        self.watershed = Watershed(connectivity=1)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the label map added."""
        item = dict(data)
        for key in self.key_iterator(item):
            maps = convert_to_numpy(item[key])
            if maps.ndim != 3 or len(maps) != 3:
                raise ConfigurationError(
                    f"{key}: expected the three channels (3, H, W) of HoVer-Net, found shape {maps.shape}."
                )
            item[self.output_key] = torch.from_numpy(self._instances(maps))[None]
            item[key] = item[key][:1]
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
