"""Maps of several sizes from the one map of a plain vision transformer."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from nucsam_monai.networks.sam.layers import LayerNorm2d
from nucsam_monai.utils.errors import ConfigurationError

STRIDES = (4, 8, 16, 32)
"""Pixels per cell of the maps, as those of a convolutional backbone's stages."""


class EmbeddingPyramid(nn.Module):
    """The simple feature pyramid of ViTDet (Li et al., 2022): one map enlarged and reduced.

    Transposed convolutions enlarge, each halving the channels; maximum pooling reduces.

    An encoder that gives finer maps of its own spares the convolutions.

    Args:
        channels: of the embedding, a multiple of 4.
        patch: pixels per cell of the embedding, a power of two from 4 to 16.
        finer: channels of the encoder's maps that are finer than the embedding, at half its pixels per cell, a
            quarter and so on down to 4; empty where it has none.

    Attributes:
        widths: channels of the four maps.

    Raises:
        ConfigurationError: another ``patch``, or another number of finer maps.

    Example:
        >>> import torch
        >>> maps = EmbeddingPyramid(channels=128, patch=8)(torch.zeros(1, 128, 32, 32))
        >>> [tuple(stage.shape[1:]) for stage in maps]
        [(64, 64, 64), (128, 32, 32), (128, 16, 16), (128, 8, 8)]
    """

    def __init__(self, channels: int, patch: int, finer: Sequence[int] = ()) -> None:
        super().__init__()
        if patch not in STRIDES[:3]:
            raise ConfigurationError(f"patch {patch}: expected an embedding of one cell per 4, 8 or 16 px.")
        if len(finer) not in (0, STRIDES.index(patch)):
            raise ConfigurationError(
                f"finer maps: found {len(finer)}, expected none or {STRIDES.index(patch)} for an embedding of one cell "
                f"per {patch} px."
            )
        built = STRIDES[len(finer) :]
        self.stages = nn.ModuleList(_stage(channels, patch, stride) for stride in built)
        self.widths = (*reversed(finer), *(channels * min(stride, patch) // patch for stride in built))

    def forward(self, embedding: Tensor, finer: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return maps at a 4th, 8th, 16th and 32nd of the image.

        Args:
            embedding: ``(B, channels, h, w)``.
            finer: the encoder's finer maps, coarse to fine.
        """
        return [*reversed(finer), *(stage(embedding) for stage in self.stages)]


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
