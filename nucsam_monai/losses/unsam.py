"""Compute UN-SAM's loss: focal + Dice on the masks, cross-entropy on the self-generated hint."""

from typing import Literal, get_args

import torch
from monai.losses import DiceLoss, FocalLoss
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.losses.common import target_at
from nucsam_monai.networks.unsam import UNSAMOutput
from nucsam_monai.utils.errors import ConfigurationError

HintTarget = Literal["covered", "released"]
"""What SPGen learns in a cell of 4 x 4 pixels: ``covered`` whether nuclei cover half of it or more; ``released``, as in
the authors' code, its first pixel, which teaches every nucleus 1.5 px too far down and to the right."""


class MaskLoss(nn.Module):
    """Compute ``lambda * focal + (1 - lambda) * Dice`` on mask logits (UN-SAM, segmentation loss, lambda = 0.8).

    Args:
        focal_weight: lambda.
        dice: ``per_image`` averages the Dice loss of the masks; ``pooled`` sums over the whole batch first.
        variant: ``paper`` as above with the pixel focal loss (gamma 2, alpha 0.25); ``released`` is the
            authors' code, which puts lambda on Dice and takes the focal factor of the mean cross-entropy.

    Raises:
        ConfigurationError: ``dice`` or ``variant`` is unknown.
    """

    def __init__(
        self,
        focal_weight: float = 0.8,
        dice: Literal["per_image", "pooled"] = "per_image",
        variant: Literal["paper", "released"] = "paper",
    ) -> None:
        super().__init__()
        if dice not in ("per_image", "pooled"):
            raise ConfigurationError(f"loss dice '{dice}': expected 'per_image' or 'pooled'.")
        if variant not in ("paper", "released"):
            raise ConfigurationError(f"loss variant '{variant}': expected 'paper' or 'released'.")
        self.focal_weight = focal_weight if variant == "paper" else 1.0 - focal_weight
        self.focal = FocalLoss(gamma=2.0, alpha=0.25) if variant == "paper" else BatchFocalLoss()
        self.dice = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0, batch=dice == "pooled")

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of ``(B, n_q, H, W)`` logits against a binary target of that shape.

        Each of several masks is a binary problem; they add up.
        """
        pairs = zip(logits.float().split(1, dim=1), target.float().split(1, dim=1), strict=True)
        return torch.stack([self._of_mask(*pair) for pair in pairs]).sum()

    def _of_mask(self, logits: Tensor, target: Tensor) -> Tensor:
        focal, dice = self.focal(logits, target), self.dice(logits, target)
        return self.focal_weight * focal + (1 - self.focal_weight) * dice


class BatchFocalLoss(nn.Module):
    """Compute ``0.8 (1 - exp(-b))^2 b`` from the mean cross-entropy b of a batch (the authors' code)."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of logits against a binary target of the same shape."""
        entropy = F.binary_cross_entropy_with_logits(logits, target)
        return 0.8 * (1 - torch.exp(-entropy)) ** 2 * entropy


class UNSAMLoss(nn.Module):
    """Compute ``L_seg + w_s * L_spgen``.

    Args:
        mask: the loss of the masks; :class:`~nucsam_monai.losses.DistanceInstanceLoss` where a domain's two masks are
            foreground and distance map.
        spgen_weight: w_s; the paper does not give it.
        hint_target: target of the hint, see :data:`HintTarget`.

    Raises:
        ConfigurationError: ``hint_target`` is unknown.
    """

    def __init__(
        self,
        mask: nn.Module | None = None,
        spgen_weight: float = 0.5,
        hint_target: HintTarget = "covered",
    ) -> None:
        super().__init__()
        if hint_target not in get_args(HintTarget):
            raise ConfigurationError(f"loss hint_target '{hint_target}': expected 'covered' or 'released'.")
        self.hint_target: HintTarget = hint_target
        self.mask = mask if mask is not None else MaskLoss()
        self.spgen_weight = spgen_weight

    def forward(self, output: UNSAMOutput, target: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            output: output of the network in training mode.
            target: ``(B, n_q, S, S)`` binary masks.

        Raises:
            ConfigurationError: masks and target have different shapes.
        """
        masks, hint_logits = output
        if masks.shape != target.shape:
            raise ConfigurationError(
                f"target: found shape {tuple(target.shape)}, expected the masks' {tuple(masks.shape)}. "
                "Give one target channel per query of the domain (decoder.queries_per_domain)."
            )
        loss = self.mask(masks, target)
        if hint_logits is None:
            return loss
        height, width = hint_logits.shape[-2:]
        hint = hint_target(target, (height, width), self.hint_target)
        return loss + self.spgen_weight * F.binary_cross_entropy_with_logits(hint_logits.float(), hint)


def hint_target(target: Tensor, size: tuple[int, int], variant: HintTarget = "covered") -> Tensor:
    """Reduce the ground truth to SPGen's output.

    Args:
        target: ``(B, n_q, S, S)`` binary; a pixel of any mask counts as foreground.
        size: height and width of the hint logits.
        variant: see :data:`HintTarget`. On cells of more than 4 pixels, as on the token grid, ``released`` is
            ``covered`` too: one pixel of a token would miss nuclei or double them.

    Returns:
        ``(B, 1, h, w)`` float32 of 0 and 1.
    """
    foreground = (target.amax(dim=1, keepdim=True) > 0).float()
    if variant == "released" and foreground.shape[-1] // size[-1] <= 4:
        return F.interpolate(foreground, size=size, mode="nearest")
    return target_at(foreground.new_empty(len(foreground), 1, *size), foreground)
