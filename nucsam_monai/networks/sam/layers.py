"""Define layers that the parts of SAM and the methods share."""

import torch
from segment_anything.modeling.common import LayerNorm2d as OfficialLayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.utils.sam_pixels import SAM_PIXEL_MEAN, SAM_PIXEL_STD


class LayerNorm2d(OfficialLayerNorm2d):
    """Layer normalisation over the channels of ``(B, C, h, w)``, computed in float32.

    The official layer squares in the input's type, which overflows in half precision for the large SAMs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; the result has the input's type."""
        channels_last = x.permute(0, 2, 3, 1).float()
        weight, bias = self.weight.float(), self.bias.float()
        normed = F.layer_norm(channels_last, weight.shape, weight, bias, self.eps)
        return normed.permute(0, 3, 1, 2).to(x.dtype)


def use_float32_norms(module: nn.Module) -> None:
    """Replace every official ``LayerNorm2d`` inside ``module`` by :class:`LayerNorm2d`, weights kept."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, OfficialLayerNorm2d) and not isinstance(child, LayerNorm2d):
                replacement = LayerNorm2d(child.weight.numel(), eps=child.eps)
                replacement.weight, replacement.bias = child.weight, child.bias
                setattr(parent, name, replacement)


class UnitRGB(nn.Module):
    """Undo SAM's normalisation, for parts of a network that expect RGB in 0..1.

    Example:
        >>> UnitRGB()(torch.zeros(1, 3, 1, 1)).flatten()  # SAM's mean colour
        tensor([0.4850, 0.4560, 0.4060])
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(SAM_PIXEL_MEAN).view(3, 1, 1) / 255, persistent=False)
        self.register_buffer("std", torch.tensor(SAM_PIXEL_STD).view(3, 1, 1) / 255, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return float32 RGB ``(B, 3, H, W)`` from images that were normalised with SAM's constants."""
        return image.float() * self.std + self.mean
