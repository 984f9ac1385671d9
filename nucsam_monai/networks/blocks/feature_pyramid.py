"""The feature pyramid network (Lin et al., 2017)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class FeaturePyramid(nn.Module):
    """Maps of one width that combine the detail of fine stages with the view of coarse ones.

    All stages take part in the top-down path, even where only the finest are returned. There is neither
    normalisation nor activation.

    Args:
        in_channels: channels of the backbone's stages, the finest first.
        channels: channels of the result.
        levels: number of maps that are returned, the finest first.

    Example:
        >>> import torch
        >>> stages = [torch.zeros(1, 8, 16, 16), torch.zeros(1, 16, 8, 8)]
        >>> FeaturePyramid([8, 16], channels=4, levels=1)(stages)[0].shape
        torch.Size([1, 4, 16, 16])
    """

    def __init__(self, in_channels: Sequence[int], channels: int, levels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, kernel_size=1) for width in in_channels)
        self.output = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(levels)
        )
        for convolution in self.modules():
            if isinstance(convolution, nn.Conv2d) and convolution.bias is not None:
                nn.init.xavier_uniform_(convolution.weight)
                nn.init.zeros_(convolution.bias)

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Return ``levels`` maps ``(B, channels, h_j, w_j)`` of the finest stages' sizes."""
        maps = [lateral(stage) for lateral, stage in zip(self.lateral, stages, strict=True)]
        for level in range(len(maps) - 1, 0, -1):
            # the size is named because rounding down makes coarse maps smaller than half of the finer one
            finer = maps[level - 1]
            maps[level - 1] = finer + F.interpolate(maps[level], size=finer.shape[-2:], mode="nearest")
        return [output(feature) for output, feature in zip(self.output, maps, strict=False)]
