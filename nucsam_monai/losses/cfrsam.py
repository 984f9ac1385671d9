"""Compute CFR-SAM's loss: SAM's loss on coarse and refined masks, and cross-entropy on their boundaries."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.losses.common import NucleusMaskLoss
from nucsam_monai.networks.cfrsam.network import CFRSAMOutput
from nucsam_monai.utils.errors import ConfigurationError


class CFRSAMTarget(NamedTuple):
    """Hold the ground truth of N prompts on B images.

    Attributes:
        masks: ``(N, S, S)`` binary masks of the prompted nuclei, of any type.
        foreground: ``(B, S, S)`` binary masks of all nuclei; only the boundary target ``sobel_semantic`` looks
            at it.
        prompts_per_image: ``(B,)`` integers with sum N, which goes with ``foreground``.
    """

    masks: Tensor
    foreground: Tensor | None = None
    prompts_per_image: Tensor | None = None


class CFRSAMLoss(nn.Module):
    """Compute ``L(coarse) + L(refined) + 0.01 * BCE(boundary)``, ``L = 20 * focal + Dice + (predicted IoU - IoU)^2``.

    CFR-SAM, section on the training objective; ``L`` is
    :class:`~nucsam_monai.losses.common.NucleusMaskLoss`. Coarse logits are enlarged to the image bilinearly.

    Args:
        focal_weight: weight of the focal loss.
        boundary_weight: weight of the cross-entropy of the boundary.
        dice: ``pooled`` or ``per_mask``.
        iou_target: the one predicted IoU has to fit ``both`` masks, as in the paper, or the ``refined`` one.
        detach_iou_target: stop the gradient of the IoU term through the masks; the authors let it pass.
        boundary_target: ``inner`` is the mask without its 3 x 3 erosion: one pixel wide and different for
            touching nuclei. ``sobel_semantic`` is the Sobel magnitude of all nuclei together, divided by its
            maximum, inside the nucleus: as the authors do, but for their rounding, which keeps corners alone.

    Raises:
        ConfigurationError: the choice is unknown.
    """

    def __init__(
        self,
        focal_weight: float = 20.0,
        boundary_weight: float = 0.01,
        dice: Literal["pooled", "per_mask"] = "pooled",
        iou_target: Literal["both", "refined"] = "both",
        detach_iou_target: bool = False,
        boundary_target: Literal["inner", "sobel_semantic"] = "inner",
    ) -> None:
        super().__init__()
        for name, value, permitted in (
            ("iou_target", iou_target, ("both", "refined")),
            ("boundary_target", boundary_target, ("inner", "sobel_semantic")),
        ):
            if value not in permitted:
                raise ConfigurationError(f"loss {name} '{value}': expected one of {permitted}.")
        self.masks = NucleusMaskLoss(focal_weight, dice, detach_iou_target)
        self.boundary_weight = boundary_weight
        self.iou_target = iou_target
        self.boundary_target = boundary_target

    def forward(self, output: CFRSAMOutput, target: CFRSAMTarget) -> Tensor:
        """Return the scalar loss; without prompts a zero with a gradient of zero.

        Raises:
            ConfigurationError: there are not as many masks as prompts, or the foreground is missing.
        """
        if len(output.coarse) != len(target.masks):
            raise ConfigurationError(
                f"target: found {len(target.masks)} masks, expected one for each of {len(output.coarse)} prompts."
            )
        if not len(output.coarse):
            return torch.stack([part.float().sum() for part in output if part is not None]).sum()
        truth = target.masks.unsqueeze(1).float()
        size = (truth.shape[-2], truth.shape[-1])
        coarse = F.interpolate(output.coarse.float(), size=size, mode="bilinear", align_corners=False)
        fits_coarse = self.iou_target == "both" or output.refined is None
        loss = self.masks(coarse, truth, output.iou if fits_coarse else None)
        if output.refined is not None:
            loss = loss + self.masks(output.refined.float(), truth, output.iou)
        if output.boundary is not None:
            boundary = F.binary_cross_entropy_with_logits(output.boundary.float(), self._boundary(target))
            loss = loss + self.boundary_weight * boundary
        return loss

    def _boundary(self, target: CFRSAMTarget) -> Tensor:
        if self.boundary_target == "inner":
            return inner_boundaries(target.masks)
        if target.foreground is None or target.prompts_per_image is None:
            raise ConfigurationError(
                "target: found no foreground or no prompts_per_image, expected both, because boundary_target "
                "'sobel_semantic' is computed from the mask of all nuclei."
            )
        return sobel_boundaries(target.masks, target.foreground, target.prompts_per_image)


def inner_boundaries(masks: Tensor) -> Tensor:
    """Return the pixels of each mask that have a pixel outside of it among their eight neighbours.

    A mask that the image's border cuts has no boundary there.

    Args:
        masks: ``(N, H, W)`` binary.

    Returns:
        ``(N, 1, H, W)`` float32 of 0 and 1.

    Example:
        >>> inner_boundaries(torch.ones(1, 3, 3)).sum()
        tensor(0.)
    """
    inside = masks.unsqueeze(1).float()
    eroded = -F.max_pool2d(-inside, kernel_size=3, stride=1, padding=1)
    return inside - eroded


def sobel_boundaries(masks: Tensor, foreground: Tensor, prompts_per_image: Tensor) -> Tensor:
    """Return the Sobel magnitude of each image's foreground, divided by its maximum, inside each mask.

    Borders are repeated outwards, so that the image's border is not a boundary; without an edge all is 0.

    Args:
        masks: ``(N, H, W)`` binary.
        foreground: ``(B, H, W)`` binary.
        prompts_per_image: ``(B,)`` integers with sum N.

    Returns:
        ``(N, 1, H, W)`` float32 from 0 to 1.
    """
    across = foreground.new_tensor(
        [[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=torch.float32
    )
    padded = F.pad(foreground.unsqueeze(1).float(), [1, 1, 1, 1], mode="replicate")
    gradient = F.conv2d(padded, torch.stack([across, across.T]).unsqueeze(1))
    magnitude = gradient.square().sum(dim=1, keepdim=True).sqrt()
    strongest = magnitude.amax(dim=(1, 2, 3), keepdim=True)
    edges = magnitude / strongest.clamp_min(
        1.0
    )  # a single edge has a magnitude of at least the square root of 2
    counts = prompts_per_image.to(edges.device)
    return edges.repeat_interleave(counts, dim=0, output_size=len(masks)) * masks.unsqueeze(1).float()
