"""Compute the losses of PromptNucSeg's segmenter: alone, with an auxiliary head, and with the prompter."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.losses.common import HoVerNetBranchLoss, NucleusMaskLoss, target_at
from nucsam_monai.losses.prompter import PrompterLoss, PrompterTarget
from nucsam_monai.networks.nucleus_prompts import MaskPrediction
from nucsam_monai.networks.promptnucseg import EndToEndOutput, TaughtPrediction
from nucsam_monai.utils.errors import ConfigurationError


class NucleusTargets(NamedTuple):
    """Hold the ground truth of N prompts.

    Attributes:
        masks: ``(N, S, S)`` binary, any type.
        classes: ``(N,)`` int64 class ids from 0; None without classes.
        dense: ``(B, 3, h, w)`` of :class:`~nucsam_monai.transforms.DenseNucleid`, of the images; None where only
            prompted masks are taught.
    """

    masks: Tensor
    classes: Tensor | None = None
    dense: Tensor | None = None


class SegmentorLoss(nn.Module):
    """Compute ``20 * focal + Dice + (predicted IoU - soft IoU)^2`` (PromptNucSeg, section on the segmentor).

    With class logits the multi-class focal loss of gamma 2 is added.

    Args:
        focal_weight: see :class:`~nucsam_monai.losses.common.NucleusMaskLoss`, also for the next two.
        dice: ``pooled`` or ``per_mask``.
        detach_iou_target: whether the predicted IoU leaves the masks alone.
        loss_at: compare at the size of the ``image``, to which logits are enlarged bilinearly, or at that of
            the ``logits``, with the mask's pixel in the middle of each cell, which costs less.

    Raises:
        ConfigurationError: ``dice`` or ``loss_at`` is unknown.
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
            ConfigurationError: the numbers of masks and prompts differ, or classes are missing.
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
            loss = loss + _multiclass_focal(output.class_logits.float(), target.classes)
        return loss

    def _at_one_size(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        if self.loss_at == "image":
            logits = F.interpolate(
                logits, size=(masks.shape[-2], masks.shape[-1]), mode="bilinear", align_corners=False
            )
        return logits, target_at(logits, masks)


def _multiclass_focal(logits: Tensor, classes: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the mean of ``(1 - p)^gamma * -log p``, p being the softmax probability of the true class.

    Args:
        logits: ``(N, C)``.
        classes: ``(N,)`` int64 class ids.
        gamma: focusing exponent.
    """
    entropy = F.cross_entropy(logits, classes, reduction="none")
    return ((1 - torch.exp(-entropy)) ** gamma * entropy).mean()


class DenselyTaughtLoss(nn.Module):
    """Compute ``masks + dense_weight * dense``: the loss of prompted masks, and HoVer-Net's loss of all pixels.

    Args:
        masks: masks of the prompted nuclei.
        dense_weight: weight of MONAI's loss of HoVer-Net's branches; with 0 the head is not trained.

    Raises:
        ConfigurationError: a negative weight.
    """

    def __init__(self, masks: SegmentorLoss, dense_weight: float = 1.0) -> None:
        super().__init__()
        if dense_weight < 0:
            raise ConfigurationError(f"loss dense_weight {dense_weight}: expected 0 or more.")
        self.masks = masks
        self.dense = HoVerNetBranchLoss()
        self.dense_weight = dense_weight

    def forward(self, output: TaughtPrediction, target: NucleusTargets) -> Tensor:
        """Return the scalar loss.

        Raises:
            ConfigurationError: the target lacks the maps of all pixels.
        """
        if target.dense is None:
            raise ConfigurationError(
                "target: found no maps of all pixels, expected the item's 'dense' of DenseNucleid."
            )
        return self.masks(output.masks, target) + self.dense_weight * self.dense(output.dense, target.dense)


class EndToEndTarget(NamedTuple):
    """Hold the ground truth of both networks for one batch."""

    nuclei: PrompterTarget
    masks: NucleusTargets


class EndToEndLoss(nn.Module):
    """Compute ``prompter_weight * (L_reg + L_cls + L_aux) + L_segmentor`` (PromptNucSeg, supplement: shared encoder).

    Args:
        prompter: loss of the points.
        segmentor: loss of the masks.
        prompter_weight: weight of the prompter's loss, which the paper does not give.
    """

    def __init__(
        self, prompter: PrompterLoss, segmentor: SegmentorLoss, *, prompter_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.prompter = prompter
        self.segmentor = segmentor
        self.prompter_weight = prompter_weight

    def forward(self, output: EndToEndOutput, target: EndToEndTarget) -> Tensor:
        """Return the scalar loss."""
        points = self.prompter(output.found, target.nuclei)
        return self.prompter_weight * points + self.segmentor(output.masks, target.masks)
