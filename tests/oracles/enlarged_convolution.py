"""The convolution of an enlarged map, one after the other."""

from torch import Tensor
from torch.nn import functional as F


def enlarge_then_convolve(features: Tensor, weight: Tensor, bias: Tensor | None, factor: int) -> Tensor:
    """Return the 3 x 3 convolution of a map that is enlarged bilinearly; zeros lie outside."""
    enlarged = F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)
    return F.conv2d(enlarged, weight, bias, padding=1)
