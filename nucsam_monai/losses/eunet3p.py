"""Compute eU-Net3+'s loss: generalised Dice and focal loss with equal weights."""

from typing import Literal

import torch
from monai.losses import DiceLoss, FocalLoss, GeneralizedDiceLoss
from torch import Tensor, nn

from nucsam_monai.networks.eunet3p import EUNet3POutput
from nucsam_monai.utils.errors import ConfigurationError


class EUNet3PMaskLoss(nn.Module):
    """Compute ``0.5 * Dice + 0.5 * focal`` (gamma 2) on the logits of background and nucleus (eU-Net3+, losses).

    ``generalized_dice_focal`` is the paper's: softmax over both channels, Dice weighed by the inverse squared
    areas, per image. ``sigmoid_focal_dice`` takes the channels as two binary problems with plain Dice, as the
    authors' code does, but divides by the sum of the areas, as Dice is defined.

    Args:
        kind: kind of loss, see above.

    Raises:
        ConfigurationError: ``kind`` is unknown.

    Example:
        >>> loss = EUNet3PMaskLoss()
        >>> bool(loss(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 8)) > 0)
        True
    """

    def __init__(
        self, kind: Literal["generalized_dice_focal", "sigmoid_focal_dice"] = "generalized_dice_focal"
    ) -> None:
        super().__init__()
        if kind not in ("generalized_dice_focal", "sigmoid_focal_dice"):
            raise ConfigurationError(
                f"loss kind '{kind}': expected 'generalized_dice_focal' or 'sigmoid_focal_dice'."
            )
        self.softmax = kind == "generalized_dice_focal"
        # MONAI's smoothing of 1e-5 would outweigh sums that are divided by squared areas; background and
        # nuclei fill the image together, so that no sum is zero.
        self.dice = (
            GeneralizedDiceLoss(softmax=True, smooth_nr=0.0, smooth_dr=0.0)
            if self.softmax
            else DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)
        )
        self.focal = FocalLoss(gamma=2.0)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            logits: ``(B, 2, H, W)`` of background and nucleus, or ``(B, 1, H, W)``, the logit of nucleus that
                the network gives in evaluation; the background's is then its negative for two binary
                problems, and zero for a softmax.
            target: ``(B, 1, H, W)`` binary mask of all nuclei.

        Raises:
            ConfigurationError: logits and target do not fit.
        """
        logits, nucleus = logits.float(), target.float()
        if target.ndim != 4 or logits.shape[1] not in (1, 2) or nucleus.shape != logits[:, :1].shape:
            raise ConfigurationError(
                f"logits {tuple(logits.shape)} and target {tuple(target.shape)}: expected (B, 2, H, W) or "
                "(B, 1, H, W) logits and one mask of all nuclei (B, 1, H, W)."
            )
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits) if self.softmax else -logits, logits], dim=1)
        classes = torch.cat([1 - nucleus, nucleus], dim=1)
        # The softmax of two channels is the sigmoid of their difference.
        focal = (
            self.focal(logits[:, 1:] - logits[:, :1], nucleus)
            if self.softmax
            else self.focal(logits, classes)
        )
        return 0.5 * self.dice(logits, classes) + 0.5 * focal


class EUNet3PLoss(nn.Module):
    """Average the mask loss over the network's output and its supervised levels.

    Args:
        mask: the loss of one output; :class:`~nucsam_monai.losses.DistanceInstanceLoss` where the network also draws
            the distance map.
    """

    def __init__(self, mask: nn.Module | None = None) -> None:
        super().__init__()
        self.mask = mask if mask is not None else EUNet3PMaskLoss()

    def forward(self, output: EUNet3POutput, target: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            output: output of the network in training mode.
            target: ``(B, 1, H, W)`` binary mask of all nuclei, or ``(B, 2, H, W)`` with the distance map behind it.

        Raises:
            ConfigurationError: logits and target do not fit.
        """
        every = (output.logits, *output.side_logits)
        return torch.stack([self.mask(logits, target) for logits in every]).mean()
