"""Define what a compared system adds to the common settings, and the transforms that apply it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_numpy
from torch import nn

from nucsam_monai.networks.baselines import Built, Size
from nucsam_monai.transforms.targets import class_of_each, whole_ids
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import NucleiPrediction

Target = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""Makes the training target ``(C, H, W)`` float32 of a label map and a map of classes, see :func:`class_map`, both
``(H, W)`` int64; None where classes are not told apart."""

Rule = Callable[[np.ndarray, float, Sequence[str]], NucleiPrediction]
"""Makes nuclei of the sigmoid ``(C, H, W)`` of what the network gives, the threshold of the foreground's probability,
and the names of the classes."""


class Order(NamedTuple):
    """Describe the network to build for a system.

    Attributes:
        size: size of the network.
        outputs: logits per pixel of dense systems; 2 if a distance map is learned in addition to the foreground.
        classes: number of classes of nuclei; 1 without classes.
        variant: part of the name that stands for the asterisk in its key, for example an encoder.
    """

    size: Size = "standard"
    outputs: int = 1
    classes: int = 1
    variant: str = ""

    @property
    def small(self) -> bool:
        """Whether a network for quick trials is wanted in place of the paper's."""
        return self.size == "small"


def _given(loss: nn.Module) -> nn.Module:
    return loss


@dataclass(frozen=True)
class System:
    """Define a compared system: its network, its training target and its post-processing.

    A dense system returns logits ``(B, outputs, H, W)`` of nucleus and, if learned, distance map. It is trained with
    the bundle's loss and needs only ``build``. Other systems have their own post-processing: in evaluation they return
    ``(B, C, H, W)`` whose sigmoid is a map in 0..1 that can be blended across tiles.

    Attributes:
        build: function that builds the network.
        loss: function from the loss of dense systems to the training loss ``loss(network output, target)``.
        target: training target, see :data:`Target`; None for foreground and distance map.
        rule: post-processing, see :data:`Rule`; None for dense systems.
        has_foreground: for systems with a rule: the first map is the nucleus probability, so that the rules of dense
            systems may take it as well.
        knows_classes: whether the network predicts classes of nuclei.
        sizes: sizes of its network.
    """

    build: Callable[[Order], Built]
    loss: Callable[[nn.Module], nn.Module] = _given
    target: Target | None = None
    rule: Rule | None = None
    has_foreground: bool = True
    knows_classes: bool = False
    sizes: tuple[Size, ...] = ("small", "standard")


class OwnTargetd(MapTransform):
    """Put a system's own training target ``(C, H, W)`` float32 under ``label``.

    Args:
        target: training target, see :data:`Target`.
        with_classes: whether items hold ``classes``, ``{instance id: class id}``, and the target has one channel or
            value per class.
        keys: the instance map ``(1, H, W)``.
        output_key: key of the target.
    """

    def __init__(
        self,
        target: Target,
        with_classes: bool = False,
        keys: KeysCollection = "instances",
        output_key: str = "label",
    ) -> None:
        super().__init__(keys)
        self.target = target
        self.with_classes = with_classes
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the target.

        Raises:
            DatasetError: a nucleus without a class.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            instances = whole_ids(item[key])
            classes = class_map(instances, item.get("classes")) if self.with_classes else None
            item[self.output_key] = torch.from_numpy(self.target(instances, classes))
        return item


class OwnInstancesd(MapTransform):
    """Turn the output maps of a system into nuclei by its own post-processing.

    Args:
        rule: post-processing, see :data:`Rule`.
        threshold: a pixel is foreground from this probability on.
        class_names: names of the classes; one name without classes.
        keys: the maps ``(C, H, W)`` in 0..1. A :class:`~nucsam_monai.utils.prediction.NucleiPrediction` takes their
            place.
    """

    def __init__(
        self,
        rule: Rule,
        threshold: float = 0.5,
        class_names: Sequence[str] = ("nucleus",),
        keys: KeysCollection = "pred",
    ) -> None:
        super().__init__(keys)
        self.rule = rule
        self.threshold = threshold
        self.class_names = tuple(class_names)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the nuclei."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.rule(convert_to_numpy(item[key]), self.threshold, self.class_names)
        return item


class ForegroundChanneld(MapTransform):
    """Keep the first of a system's maps, the nucleus probability.

    Args:
        keys: the maps ``(C, H, W)``.
    """

    def __init__(self, keys: KeysCollection = "pred") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with maps ``(1, H, W)``."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = item[key][:1]
        return item


def class_map(instances: np.ndarray, classes: Mapping[int, int] | None) -> np.ndarray:
    """Return the class of every pixel, ``(H, W)`` int64: 0 in the background, k + 1 in a nucleus of class k.

    Args:
        instances: ``(H, W)`` integers, 0 = background.
        classes: ``{instance id: class id}``; None if all are of class 0.

    Raises:
        DatasetError: a nucleus without a class.

    Example:
        >>> class_map(np.array([[0, 5, 7]]), {5: 1, 7: 0})
        array([[0, 2, 1]])
    """
    ids, place = np.unique(instances, return_inverse=True)
    of_id = np.zeros(len(ids), dtype=np.int64)
    of_id[ids > 0] = np.add(class_of_each(ids[ids > 0].tolist(), classes), 1)
    return of_id[place].reshape(instances.shape)


def class_votes(label_map: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the most frequent class among the pixels of each nucleus, ``(n,)`` int64 ordered by id.

    Args:
        label_map: ``(H, W)`` with ids 1..n.
        probabilities: ``(C, H, W)`` of the classes.

    Example:
        >>> class_votes(np.array([[1, 1, 1, 0]]), np.array([[[0.9, 0.4, 0.4, 1]], [[0.1, 0.6, 0.6, 0]]]))
        array([1])
    """
    inside = label_map > 0
    count, classes = int(label_map.max(initial=0)), len(probabilities)
    ballots = (label_map[inside] - 1) * classes + probabilities[:, inside].argmax(axis=0)
    return np.bincount(ballots, minlength=count * classes).reshape(count, classes).argmax(axis=1)


def require_maps(maps: np.ndarray, channels: int, system: str) -> None:
    """Check that maps are those of a system.

    Raises:
        ConfigurationError: they are not ``(channels, H, W)``.
    """
    if maps.ndim != 3 or len(maps) != channels:
        raise ConfigurationError(
            f"pred: found maps of shape {maps.shape}, expected ({channels}, H, W) of {system}. "
            "Use the network and the rule of one system."
        )
