"""Types of nuclei for systems that find nuclei alone: one more head, and a vote of pixels (HoVer-Net, section 3.2)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from monai.losses import DiceCELoss
from torch import Tensor, nn

from nucsam_monai.systems.system import Rule, System, Target, class_votes
from nucsam_monai.systems.unet_heads import TYPES, Maps
from nucsam_monai.utils.prediction import NucleiPrediction


class TypedLoss(nn.Module):
    """Add cross-entropy and Dice loss of the types, if the network predicts them, to a system's own loss.

    Args:
        own: loss of the system's maps.
    """

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own
        self.types = DiceCELoss(to_onehot_y=True, softmax=True)

    def forward(self, maps: Maps, target: Tensor) -> Tensor:
        """Return the scalar loss; with types the last channel of ``target`` is the map of classes."""
        if TYPES not in maps:
            return self.own(maps, target)
        return self.own(maps, target[:, :-1]) + self.types(maps[TYPES], target[:, -1:])


def _typed_target(own: Target) -> Target:
    def target(instances: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
        found = own(instances, classes)
        return found if classes is None else np.concatenate([found, classes[None].astype(np.float32)])

    return target


def voted(
    nuclei: NucleiPrediction, probabilities: np.ndarray, class_names: Sequence[str]
) -> NucleiPrediction:
    """Return the nuclei, each of the class that most of its pixels are likeliest to be of.

    Args:
        nuclei: without classes.
        probabilities: ``(C, H, W)`` of the classes.
        class_names: names of these classes.
    """
    ranked = np.where(nuclei.instances > 0, np.searchsorted(nuclei.table["id"], nuclei.instances) + 1, 0)
    table = nuclei.table.copy()
    table["class_id"] = class_votes(ranked, probabilities)
    return replace(nuclei, table=table, class_names=tuple(class_names))


def _typed_rule(own: Rule) -> Rule:
    def rule(maps: np.ndarray, threshold: float, class_names: Sequence[str]) -> NucleiPrediction:
        if len(class_names) == 1:
            return own(maps, threshold, class_names)
        plain, types = maps[: -len(class_names)], maps[-len(class_names) :]
        return voted(own(plain, threshold, class_names), types, class_names)

    return rule


def with_types(system: System) -> System:
    """Return a system of :class:`~nucsam_monai.systems.unet_heads.UNetHeads` that tells classes of nuclei apart."""
    if system.target is None or system.rule is None:
        return system  # a dense one, which has no heads
    return replace(
        system,
        loss=lambda dense: TypedLoss(system.loss(dense)),
        target=_typed_target(system.target),
        rule=_typed_rule(system.rule),
        knows_classes=True,
    )
