"""Turn the output maps of networks into instances."""

from collections.abc import Hashable, Mapping, Sequence
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
    instances_of_foreground,
    scored_distance_instances,
)
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances


class ProbabilityToInstancesd(MapTransform):
    """Turn a foreground probability into nuclei: connected components, optionally split where nuclei touch.

    The nuclei score their mean probability, with ``distance`` see
    :func:`~nucsam_monai.utils.instances.distance_scores`.

    Args:
        keys: the probability ``(1, H, W)``, or ``(2, H, W)`` of foreground and distance map, which only ``distance``
            needs and other rules pass over; ``(C, H, W)`` where the image's domain has C classes. A
            :class:`~nucsam_monai.utils.prediction.NucleiPrediction` takes its place, and that of each class stays under
            ``probability``.
        threshold: a pixel is foreground from this probability on.
        instances: ``components`` takes the 8-connected components as they are, ``watershed`` cuts them, see
            :func:`~nucsam_monai.utils.instances.watershed_instances`; ``distance`` splits them by the distance map, see
            :func:`~nucsam_monai.utils.instances.distance_instances`.
        min_distance_px: for ``watershed``: touching nuclei are split when their centres are further
            apart than this, about the radius of the smallest nucleus.
        distance_rule: for ``distance``: values of :class:`~nucsam_monai.utils.instances.DistanceRule` other than the
            threshold.
        classes: the names of the classes of domains that have one channel per class. A pixel of the foreground belongs
            to the class with the highest probability, and every class is split by the rule. Items without ``domain``
            are of the first domain with as many classes as they have channels.

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
        classes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(keys)
        self.classes = dict(classes or {})
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
        permitted = (2,) if self.instances == "distance" else (1, 2)
        for key in self.key_iterator(item):
            probability = convert_to_numpy(item[key])
            if names := self._class_names(item.get("domain"), len(probability)):
                item["probability"] = probability
                item[key] = self._of_classes(probability, names)
                continue
            if probability.ndim != 3 or len(probability) not in permitted:
                raise ConfigurationError(
                    f"{key}: expected ({permitted[0]}, H, W) for instances '{self.instances}', found shape "
                    f"{probability.shape}. Choose the rule that the weights were trained for."
                )
            foreground, scores = probability[0], None
            if self.instances == "distance":
                label_map, scores = scored_distance_instances(foreground, probability[1], self.distance_rule)
            else:
                mask = foreground >= self.threshold
                label_map = instances_of_foreground(mask, self.instances, self.min_distance_px)
            item[key] = prediction_from_instances(label_map, foreground=foreground, scores=scores)
        return item

    def _class_names(self, domain: str | None, channels: int) -> Sequence[str]:
        if domain in self.classes and len(self.classes[domain]) == channels:
            return self.classes[domain]
        return next((names for names in self.classes.values() if len(names) == channels), ())

    def _of_classes(self, probability: np.ndarray, names: Sequence[str]) -> NucleiPrediction:
        highest, likeliest = probability.max(axis=0), probability.argmax(axis=0)
        label_map = np.zeros(highest.shape, dtype=np.int32)
        class_ids: list[int] = []
        for number in range(len(names)):
            mask = (likeliest == number) & (highest >= self.threshold)
            found = instances_of_foreground(mask, self.instances, self.min_distance_px)
            label_map[found > 0] = found[found > 0] + len(class_ids)
            class_ids += [number] * int(found.max(initial=0))
        return prediction_from_instances(
            label_map, foreground=highest, class_ids=np.array(class_ids), class_names=names
        )


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


class HoVerNetInstancesd(MapTransform):
    """Split touching nuclei where the distance maps jump, by a watershed (HoVer-Net, section 3.2).

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
