"""Compute SAC's losses: focal + Dice or Dice + cross-entropy on the mask, cross-entropy on the generator."""

from typing import Literal

from monai.losses import DiceLoss, FocalLoss
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.losses.common import target_at
from nucsam_monai.networks.sac import SACOutput
from nucsam_monai.utils.errors import ConfigurationError


class SACMaskLoss(nn.Module):
    """Compute ``w * focal + Dice``, or ``Dice + cross-entropy``, on mask logits (SAC, section on the losses).

    Dice has squared sums in its denominator, and is computed per image. The paper gives no constants: the
    focal loss has those of its authors (gamma 2, alpha 0.25), its weight is SAM's. The paper prints the
    foreground's term of the cross-entropy alone, for which a mask of foreground only would be the best; here
    it is the binary cross-entropy.

    Args:
        kind: ``focal_dice`` or ``dice_ce``.
        focal_weight: w of ``focal_dice``.

    Raises:
        ConfigurationError: ``kind`` is unknown.
    """

    def __init__(
        self, kind: Literal["focal_dice", "dice_ce"] = "focal_dice", focal_weight: float = 20.0
    ) -> None:
        super().__init__()
        if kind not in ("focal_dice", "dice_ce"):
            raise ConfigurationError(f"loss kind '{kind}': expected 'focal_dice' or 'dice_ce'.")
        self.dice = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=1.0, smooth_dr=1.0)
        focal = kind == "focal_dice"
        self.pixel = FocalLoss(gamma=2.0, alpha=0.25) if focal else nn.BCEWithLogitsLoss()
        self.pixel_weight = focal_weight if focal else 1.0

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of ``(B, 1, h, w)`` logits against a binary target ``(B, 1, H, W)``.

        Raises:
            ConfigurationError: logits and target differ in more than their size.
        """
        logits, target = logits.float(), target_at(logits, target)
        return self.pixel_weight * self.pixel(logits, target) + self.dice(logits, target)


class SACLoss(nn.Module):
    """Add the mask loss and the cross-entropy of the generator; parts that are not trained are left out.

    Args:
        mask: the loss of the mask; :class:`~nucsam_monai.losses.DistanceInstanceLoss` where the network also draws the
            distance map.
    """

    def __init__(self, mask: nn.Module | None = None) -> None:
        super().__init__()
        self.mask = mask if mask is not None else SACMaskLoss()

    def forward(self, output: SACOutput, target: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            output: output of the network in training mode.
            target: ``(B, 1, S, S)`` binary mask of all nuclei, or ``(B, 2, S, S)`` with the distance map behind it.

        Raises:
            ConfigurationError: the output holds no logits, or logits and target differ in more than their size.
        """
        losses = []
        if output.mask_logits is not None:
            losses.append(self.mask(output.mask_logits, target))
        if output.generator_logits is not None:
            logits = output.generator_logits.float()
            losses.append(F.binary_cross_entropy_with_logits(logits, target_at(logits, target[:, :1])))
        if not losses:
            raise ConfigurationError("output: found no logits, expected those of the mask or the generator.")
        return sum(losses[1:], start=losses[0])
