"""Maps of several sizes from the one map of a plain vision transformer."""

import math

from torch import Tensor, nn

from nucsam_monai.networks.sam.layers import LayerNorm2d
from nucsam_monai.utils.errors import ConfigurationError

STRIDES = (4, 8, 16, 32)
"""Pixels per cell of the maps, as those of a convolutional backbone's stages."""


class EmbeddingPyramid(nn.Module):
    """The simple feature pyramid of ViTDet (Li et al., 2022): one map enlarged and reduced.

    Transposed convolutions enlarge, each halving the channels; maximum pooling reduces.

    Args:
        channels: of the embedding, a multiple of 4.
        patch: pixels per cell of the embedding, a power of two from 4 to 16.

    Attributes:
        widths: channels of the four maps.

    Raises:
        ConfigurationError: another ``patch``.

    Example:
        >>> import torch
        >>> maps = EmbeddingPyramid(channels=128, patch=8)(torch.zeros(1, 128, 32, 32))
        >>> [tuple(stage.shape[1:]) for stage in maps]
        [(64, 64, 64), (128, 32, 32), (128, 16, 16), (128, 8, 8)]
    """

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        if patch not in STRIDES[:3]:
            raise ConfigurationError(f"patch {patch}: expected an embedding of one cell per 4, 8 or 16 px.")
        self.stages = nn.ModuleList(_stage(channels, patch, stride) for stride in STRIDES)
        self.widths = tuple(channels * min(stride, patch) // patch for stride in STRIDES)

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """Return maps at a 4th, 8th, 16th and 32nd of the image from its embedding ``(B, channels, h, w)``."""
        return [stage(embedding) for stage in self.stages]


def _stage(channels: int, patch: int, stride: int) -> nn.Module:
    if stride >= patch:
        return nn.MaxPool2d(stride // patch) if stride > patch else nn.Identity()
    layers: list[nn.Module] = []
    for _ in range(int(math.log2(patch // stride))):
        layers += [
            nn.ConvTranspose2d(channels, channels // 2, 2, stride=2),
            LayerNorm2d(channels // 2),
            nn.GELU(),
        ]
        channels //= 2
    return nn.Sequential(*layers)
