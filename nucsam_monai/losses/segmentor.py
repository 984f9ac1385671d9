"""The loss of PromptNucSeg's segmentor: 20 focal + Dice on the masks, squared error on their predicted IoU."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.losses.nucleus_masks import NucleusMaskLoss
from nucsam_monai.losses.sac import target_at
from nucsam_monai.networks.nucleus_prompts import MaskPrediction
from nucsam_monai.utils.errors import ConfigurationError


class NucleusTargets(NamedTuple):
    """The ground truth of N prompts.

    Attributes:
        masks: ``(N, S, S)`` binary, any type.
        classes: ``(N,)`` int64 class ids from 0; None where there are no classes.
        dense: ``(B, 3, h, w)`` of :class:`~nucsam_monai.transforms.DenseNucleid`, of the images; None where only
            prompted masks are taught.
    """

    masks: Tensor
    classes: Tensor | None = None
    dense: Tensor | None = None


class SegmentorLoss(nn.Module):
    """``20 * focal + Dice + (predicted IoU - soft IoU)^2`` (PromptNucSeg, section on the segmentor).

    With class logits the multi-class focal loss of gamma 2 is added.

    Args:
        focal_weight: see :class:`~nucsam_monai.losses.nucleus_masks.NucleusMaskLoss`, as the next two.
        dice: ``pooled`` or ``per_mask``.
        detach_iou_target: whether the predicted IoU leaves the masks alone.
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
        if loss_at not in ("image", "logits"):
            raise ConfigurationError(f"loss loss_at '{loss_at}': expected 'image' or 'logits'.")
        self.masks = NucleusMaskLoss(focal_weight, dice, detach_iou_target)
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
        loss = self.masks(logits, masks, output.iou)
        if output.class_logits is not None and target.classes is not None:
            loss = loss + multiclass_focal(output.class_logits.float(), target.classes)
        return loss

    def _at_one_size(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        if self.loss_at == "image":
            logits = F.interpolate(
                logits, size=(masks.shape[-2], masks.shape[-1]), mode="bilinear", align_corners=False
            )
        return logits, target_at(logits, masks)


def multiclass_focal(logits: Tensor, classes: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the mean of ``(1 - p)^gamma * -log p``, p being the softmax probability of the true class.

    Args:
        logits: ``(N, C)``.
        classes: ``(N,)`` int64 class ids.
        gamma: focusing exponent.
    """
    entropy = F.cross_entropy(logits, classes, reduction="none")
    return ((1 - torch.exp(-entropy)) ** gamma * entropy).mean()
