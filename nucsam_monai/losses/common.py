"""Provide the parts that several losses are built from."""

from collections.abc import Mapping
from typing import Literal

import torch
from monai.apps.pathology.losses import HoVerNetLoss
from monai.losses import DiceCELoss, FocalLoss
from monai.networks.nets import HoVerNet
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.utils.errors import ConfigurationError

_NEARLY_NOTHING = 1e-7


class NucleusMaskLoss(nn.Module):
    """Compute ``focal_weight * focal + Dice + (predicted IoU - soft IoU)^2``, used by PromptNucSeg and CFR-SAM.

    The focal loss has gamma 2 and no balance of the classes; the soft IoU is that of probabilities and mask.

    Args:
        focal_weight: weight of the focal loss; the other terms have weight 1.
        dice: ``pooled`` sums over all masks of the batch before dividing, as the authors do; ``per_mask`` gives
            small nuclei the weight of large ones.
        detach_iou_target: stop the gradient of the third term through the masks; the authors let it pass.

    Raises:
        ConfigurationError: ``dice`` is unknown.
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


def target_at(logits: Tensor, target: Tensor) -> Tensor:
    """Return a mask in float32 at the size of the logits: 1 in every cell that it covers by half or more.

    A single pixel in place of the cell would move the mask: the first by 1.5 px at a fourth of the size, the one that
    is nearest to the centre still by 0.5 px.

    Raises:
        ConfigurationError: the two differ in their numbers of images or channels.
    """
    return (cell_means(logits, target) >= 0.5).float()


def cell_means(logits: Tensor, target: Tensor) -> Tensor:
    """Return a target in float32 at the size of the logits, averaged over each of their cells.

    Raises:
        ConfigurationError: the two differ in their numbers of images or channels.
    """
    if target.ndim != 4 or logits.shape[:2] != target.shape[:2]:
        raise ConfigurationError(
            f"target: found shape {tuple(target.shape)}, expected the {tuple(logits.shape)} of the logits but for "
            "height and width. Give one target channel per channel of the logits."
        )
    return F.adaptive_avg_pool2d(target.float(), (logits.shape[-2], logits.shape[-1]))


class HoVerNetBranchLoss(nn.Module):
    """Compute MONAI's loss of HoVer-Net's branches (section 3.1) from one target tensor.

    The target is the mask followed by the maps: ``ComputeHoVerMapsd(keys="instances")`` and
    ``ConcatItemsd(keys=["label", "hover_instances"], name="label")``. Where the network has the branch of types, the
    map of classes follows, 0 in the background and k + 1 in a nucleus of class k.
    """

    def __init__(self) -> None:
        super().__init__()
        self.branches = HoVerNetLoss()

    def forward(self, output: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            output: output of :class:`~nucsam_monai.networks.baselines.HoVerNetBranches` in training mode.
            target: ``(B, 3, H, W)`` of mask, horizontal and vertical distance in -1..1; ``(B, 4, H, W)`` with types.

        Raises:
            ConfigurationError: another number of channels.
        """
        types_key = HoVerNet.Branch.NC.value
        channels = 4 if types_key in output else 3
        if target.ndim != 4 or target.shape[1] != channels:
            raise ConfigurationError(
                f"target: found shape {tuple(target.shape)}, expected (B, {channels}, H, W) of mask and distances, and "
                "with types the classes. Join the label with what ComputeHoVerMapsd returns."
            )
        nucleus = target[:, :1].float()
        nucleus_key, distance_key = HoVerNet.Branch.NP.value, HoVerNet.Branch.HV.value
        found = {key: output[key].float() for key in (nucleus_key, distance_key)}
        expected = {
            nucleus_key: torch.cat([1 - nucleus, nucleus], dim=1),
            distance_key: target[:, 1:3].float(),
        }
        if types_key in output:
            found[types_key] = output[types_key].float()
            types = F.one_hot(target[:, 3].long(), found[types_key].shape[1])
            expected[types_key] = types.movedim(-1, 1).float()
        return self.branches(found, expected)


class DistanceInstanceLoss(nn.Module):
    """Add cross-entropy and smooth L1 of the distance map to a loss of the foreground.

    The distance is a target between 0 and 1 of a sigmoid. Cross-entropy gives large gradients where the output is
    wrong, and smooth L1 makes the values accurate, which the threshold of the markers needs.

    Args:
        mask: loss of the foreground logits against a binary target ``(B, 1, H, W)``. Default: Dice + cross-entropy.
        distance_weight: weight of the losses of the distance map.
        l1_weight: weight of smooth L1 among these.
        beta: error below which the smooth L1 loss is quadratic.

    Source: ours; the map is that of :func:`~nucsam_monai.transforms.nucleus_distance`.
    """

    def __init__(
        self,
        mask: nn.Module | None = None,
        distance_weight: float = 1.0,
        l1_weight: float = 2.0,
        beta: float = 0.1,
    ) -> None:
        super().__init__()
        self.mask = mask if mask is not None else DiceCELoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)
        self.distance_weight = distance_weight
        self.l1_weight = l1_weight
        self.beta = beta

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            logits: ``(B, n + 1, h, w)``: the n channels that ``mask`` takes, then the distance map's.
            target: ``(B, 2, H, W)``, foreground and distance map.

        Raises:
            ConfigurationError: the target has not two channels, or other images or sides than the logits.
        """
        height, width = logits.shape[-2:]
        if (
            (target.ndim, target.shape[:2]) != (4, (len(logits), 2))
            or logits.shape[1] < 2
            or target.shape[-2] % height
            or target.shape[-1] % width
        ):
            raise ConfigurationError(
                f"logits {tuple(logits.shape)} and target {tuple(target.shape)}: expected logits (B, 2, H, W) or "
                "more channels, and a target (B, 2, H, W) of foreground and distance map, as large or a multiple. "
                "Build the network and the targets with the same setting of instances."
            )
        logits, target = logits.float(), target.float()
        foreground = self.mask(logits[:, :-1], target[:, :1])
        return foreground + self.distance_weight * self.of_distance(logits[:, -1:], target[:, 1:])

    def of_distance(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the distance map alone: its logits ``(B, 1, h, w)`` against ``(B, 1, H, W)``."""
        target = cell_means(logits, target)
        depth = F.smooth_l1_loss(logits.sigmoid(), target, beta=self.beta)
        return F.binary_cross_entropy_with_logits(logits, target) + self.l1_weight * depth


class SummedLosses(nn.Module):
    """Add up the losses that a detector computes itself."""

    def forward(self, losses: Mapping[str, Tensor], target: None = None) -> Tensor:
        """Return the sum; ``target`` is what MONAI's trainer passes."""
        return torch.stack(list(losses.values())).sum()
