"""A transposed convolution whose patches never overlap, computed as one matrix product."""

from torch import Tensor, nn
from torch.nn import functional as F


class PatchConvTranspose2d(nn.ConvTranspose2d):
    """Turn every cell into a patch of ``side`` x ``side`` pixels: ``nn.ConvTranspose2d`` with that stride.

    The weights, their initialisation and the numbers are those of ``nn.ConvTranspose2d``. On a CPU PyTorch's
    own layer works image by image with the channels first, between normalisations that want them last.

    Args:
        in_channels: channels of a cell.
        out_channels: channels of a pixel.
        side: side of the patch in pixels, kernel and stride of the convolution.

    Example:
        >>> PatchConvTranspose2d(8, 3, side=2)(torch.zeros(1, 8, 5, 4)).shape
        torch.Size([1, 3, 10, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=side, stride=side)
        self.side = side

    def forward(self, cells: Tensor) -> Tensor:  # type: ignore[override]  # the output has one size only
        """Return ``(B, C', side * h, side * w)`` of ``(B, C, h, w)``, channels last in memory."""
        # (C, C', side, side) -> (side * side * C', C)
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        bias = None if self.bias is None else self.bias.repeat(self.side**2)
        patches = F.linear(cells.permute(0, 2, 3, 1), weight, bias)
        # (B, h, w, side, side, C') -> (B, h, side, w, side, C')
        pixels = patches.unflatten(3, (self.side, self.side, -1)).transpose(2, 3)
        return pixels.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
