"""Full-scale skip connections: a decoder node that sees the maps of every level."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.blocks.conv_units import conv_unit
from nucsam_monai.networks.blocks.enlarged_convolution import convolve_enlarged


class FullScaleNode(nn.Module):
    """A decoder node of U-Net 3+ (Huang et al., 2020, section 2.1, Eq. 1).

    Every level's map is brought to the node's resolution and to the same number of channels; one more
    convolution mixes them. Coarser maps are enlarged and convolved in one step, see
    :func:`~nucsam_monai.networks.blocks.enlarged_convolution.convolve_enlarged`.

    Args:
        level: of the node; 0 is the finest.
        channels: of the maps of all levels, the finest first.
        skip_channels: that each of them contributes.

    Example:
        >>> node = FullScaleNode(1, [4, 8, 16], skip_channels=4)
        >>> node([torch.zeros(1, 4, 16, 16), torch.zeros(1, 8, 8, 8), torch.zeros(1, 16, 4, 4)]).shape
        torch.Size([1, 12, 8, 8])
    """

    def __init__(self, level: int, channels: Sequence[int], skip_channels: int) -> None:
        super().__init__()
        self.level = level
        self.skips = nn.ModuleList(conv_unit(width, skip_channels) for width in channels)
        width = skip_channels * len(channels)
        self.merge = conv_unit(width, width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return ``(B, skip_channels * levels, h, w)``.

        Args:
            maps: ``(B, C_j, h_j, w_j)`` of all levels, the finest first: of finer levels and its own those of
                the encoder, of coarser levels those of the decoder.
        """
        skips = [
            _skip(features, cast(nn.Sequential, unit), source - self.level)
            for source, (features, unit) in enumerate(zip(maps, self.skips, strict=True))
        ]
        return self.merge(torch.cat(skips, dim=1))


def _skip(features: Tensor, unit: nn.Sequential, finer_by: int) -> Tensor:
    """Return ``unit(change_level(features, finer_by))``."""
    if finer_by <= 0:
        return unit(change_level(features, finer_by))
    convolution = cast(nn.Conv2d, unit[0])
    enlarged = convolve_enlarged(features, convolution.weight, convolution.bias, 2**finer_by)
    return unit[1:](enlarged)


def change_level(features: Tensor, finer_by: int) -> Tensor:
    """Enlarge a map ``2 ** finer_by`` times bilinearly, or take the maxima where the number is negative."""
    if finer_by < 0:
        return F.max_pool2d(features, kernel_size=2**-finer_by, ceil_mode=True)
    if finer_by == 0:
        return features
    return F.interpolate(features, scale_factor=2**finer_by, mode="bilinear", align_corners=False)
