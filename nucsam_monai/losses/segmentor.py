"""The loss of PromptNucSeg's segmentor: 20 focal + Dice on the masks, squared error on their predicted IoU."""

from typing import Literal, NamedTuple

import torch
from monai.losses import FocalLoss
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.losses.sac import target_at
from nucsam_monai.networks.nucleus_prompts import MaskPrediction
from nucsam_monai.utils.errors import ConfigurationError

_NEARLY_NOTHING = 1e-7


class NucleusTargets(NamedTuple):
    """The ground truth of N prompts.

    Attributes:
        masks: ``(N, S, S)`` binary, any type.
        classes: ``(N,)`` int64 class ids from 0; None where there are no classes.
    """

    masks: Tensor
    classes: Tensor | None = None


class SegmentorLoss(nn.Module):
    """``20 * focal + Dice + (predicted IoU - soft IoU)^2`` (PromptNucSeg, section on the segmentor).

    The focal loss has gamma 2 and no balance of the classes. With class logits the multi-class focal loss of
    gamma 2 is added.

    Args:
        focal_weight: of the focal loss; the other terms have weight 1.
        dice: ``pooled`` sums over all masks of the batch before dividing, as the authors do; ``per_mask``
            gives small nuclei the weight of large ones.
        detach_iou_target: stop the gradient of the third term through the masks; the authors let it pass.
        loss_at: compare at the size of the ``image``, to which logits are enlarged bilinearly, or at that of
            the ``logits``, with the mask's pixel in the middle of each cell, which costs less.

    Raises:
        ConfigurationError: an unknown ``dice`` or ``loss_at``.
    """

    def __init__(
        self,
        focal_weight: float = 20.0,
        dice: Literal["pooled", "per_mask"] = "pooled",
        detach_iou_target: bool = False,
        loss_at: Literal["image", "logits"] = "image",
    ) -> None:
        super().__init__()
        if dice not in ("pooled", "per_mask"):
            raise ConfigurationError(f"loss dice '{dice}': expected 'pooled' or 'per_mask'.")
        if loss_at not in ("image", "logits"):
            raise ConfigurationError(f"loss loss_at '{loss_at}': expected 'image' or 'logits'.")
        self.focal = FocalLoss(gamma=2.0, alpha=None)
        self.focal_weight = focal_weight
        self.dice = dice
        self.detach_iou_target = detach_iou_target
        self.loss_at = loss_at

    def forward(self, output: MaskPrediction, target: NucleusTargets) -> Tensor:
        """Return the scalar loss; without prompts a zero with a gradient of zero.

        Raises:
            ConfigurationError: as many masks as prompts were expected, or classes are missing.
        """
        if output.class_logits is not None and target.classes is None:
            raise ConfigurationError(
                "target: found no classes, expected one per nucleus, because the segmentor has a class head. "
                "Load the classes of the dataset, or build it with classes 0."
            )
        if not len(output.logits):
            return torch.stack([part.float().sum() for part in output if part is not None]).sum()
        logits, masks = self._at_one_size(output.logits.float(), target.masks.unsqueeze(1))
        loss = self.focal_weight * self.focal(logits, masks)
        probability, truth = torch.sigmoid(logits).flatten(1), masks.flatten(1)
        shared, found, true = (probability * truth).sum(1), probability.sum(1), truth.sum(1)
        loss = loss + self._dice(shared, found, true)
        iou = (shared + _NEARLY_NOTHING) / (found + true - shared + _NEARLY_NOTHING)
        loss = loss + F.mse_loss(output.iou[:, 0].float(), iou.detach() if self.detach_iou_target else iou)
        if output.class_logits is not None and target.classes is not None:
            loss = loss + multiclass_focal(output.class_logits.float(), target.classes)
        return loss

    def _at_one_size(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        if self.loss_at == "image":
            logits = F.interpolate(
                logits, size=(masks.shape[-2], masks.shape[-1]), mode="bilinear", align_corners=False
            )
        return logits, target_at(logits, masks)

    def _dice(self, shared: Tensor, found: Tensor, true: Tensor) -> Tensor:
        """Return the Dice loss from sums ``(N,)`` over the pixels; masks without a pixel have none."""
        if self.dice == "pooled":
            shared, found, true = shared.sum(), found.sum(), true.sum()
        loss = 1 - 2 * shared / (found + true).clamp_min(_NEARLY_NOTHING)
        return (loss * (true > 0)).mean()


def multiclass_focal(logits: Tensor, classes: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the mean of ``(1 - p)^gamma * -log p``, p being the softmax probability of the true class.

    Args:
        logits: ``(N, C)``.
        classes: ``(N,)`` int64 class ids.
        gamma: focusing exponent.
    """
    entropy = F.cross_entropy(logits, classes, reduction="none")
    return ((1 - torch.exp(-entropy)) ** gamma * entropy).mean()
