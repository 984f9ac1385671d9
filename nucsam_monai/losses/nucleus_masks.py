"""The loss of masks that were asked for one by one, and of the quality predicted for them."""

from typing import Literal

import torch
from monai.losses import FocalLoss
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.utils.errors import ConfigurationError

_NEARLY_NOTHING = 1e-7


class NucleusMaskLoss(nn.Module):
    """``focal_weight * focal + Dice + (predicted IoU - soft IoU)^2``, which PromptNucSeg and CFR-SAM share.

    The focal loss has gamma 2 and no balance of the classes; the soft IoU is that of probabilities and mask.

    Args:
        focal_weight: of the focal loss; the other terms have weight 1.
        dice: ``pooled`` sums over all masks of the batch before dividing, as the authors do; ``per_mask`` gives
            small nuclei the weight of large ones.
        detach_iou_target: stop the gradient of the third term through the masks; the authors let it pass.

    Raises:
        ConfigurationError: an unknown ``dice``.
    """

    def __init__(
        self,
        focal_weight: float = 20.0,
        dice: Literal["pooled", "per_mask"] = "pooled",
        detach_iou_target: bool = False,
    ) -> None:
        super().__init__()
        if dice not in ("pooled", "per_mask"):
            raise ConfigurationError(f"loss dice '{dice}': expected one of ('pooled', 'per_mask').")
        self.focal = FocalLoss(gamma=2.0, alpha=None)
        self.focal_weight = focal_weight
        self.dice = dice
        self.detach_iou_target = detach_iou_target

    def forward(self, logits: Tensor, masks: Tensor, iou: Tensor | None) -> Tensor:
        """Return the scalar loss of at least one mask.

        Args:
            logits: ``(N, 1, H, W)`` float32.
            masks: ``(N, 1, H, W)`` float32 of 0 and 1.
            iou: ``(N, 1)`` predicted IoU of each mask; without it the third term is left out.
        """
        loss = self.focal_weight * self.focal(logits, masks)
        probability, truth = torch.sigmoid(logits).flatten(1), masks.flatten(1)
        shared, found, true = (probability * truth).sum(1), probability.sum(1), truth.sum(1)
        loss = loss + self._dice(shared, found, true)
        if iou is None:
            return loss
        soft_iou = (shared + _NEARLY_NOTHING) / (found + true - shared + _NEARLY_NOTHING)
        return loss + F.mse_loss(iou[:, 0].float(), soft_iou.detach() if self.detach_iou_target else soft_iou)

    def _dice(self, shared: Tensor, found: Tensor, true: Tensor) -> Tensor:
        """Return the Dice loss from sums ``(N,)`` over the pixels; masks without a pixel have none."""
        if self.dice == "pooled":
            shared, found, true = shared.sum(), found.sum(), true.sum()
        loss = 1 - 2 * shared / (found + true).clamp_min(_NEARLY_NOTHING)
        return (loss * (true > 0)).mean()
