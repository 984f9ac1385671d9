"""Layers that the parts of SAM share."""

from segment_anything.modeling.common import LayerNorm2d as OfficialLayerNorm2d
from torch import Tensor, nn
from torch.nn import functional


class LayerNorm2d(OfficialLayerNorm2d):
    """Layer normalisation over the channels of ``(B, C, h, w)``, computed in float32.

    The official layer squares in the input's type, which overflows in half precision for the large SAMs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; the result has the input's type."""
        channels_last = x.permute(0, 2, 3, 1).float()
        weight, bias = self.weight.float(), self.bias.float()
        normed = functional.layer_norm(channels_last, weight.shape, weight, bias, self.eps)
        return normed.permute(0, 3, 1, 2).to(x.dtype)


def use_float32_norms(module: nn.Module) -> None:
    """Replace every official ``LayerNorm2d`` inside ``module`` by :class:`LayerNorm2d`, weights kept."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, OfficialLayerNorm2d) and not isinstance(child, LayerNorm2d):
                replacement = LayerNorm2d(child.weight.numel(), eps=child.eps)
                replacement.weight, replacement.bias = child.weight, child.bias
                setattr(parent, name, replacement)
