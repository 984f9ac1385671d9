"""SAM's embedding at the resolution of a U-Net's levels, and what it changes there."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from nucsam_monai.networks.blocks.conv_units import initialise
from nucsam_monai.networks.blocks.max_blur_pool import MaxBlurPool
from nucsam_monai.networks.blocks.x_gated_fusion import (
    ChannelGate,
    ConcatFusion,
    XGatedFusionBlock,
    XGFBOptions,
)
from nucsam_monai.utils.errors import ConfigurationError


class SAMGuidance(nn.Module):
    """Fuse SAM's embedding into the coarsest level and, if ``advanced``, gate every other level with it.

    The gates of the other levels are those of the authors' code; the paper leaves them to future work.

    Args:
        filters: channels of the levels, the finest first.
        embed_channels: of SAM's embedding.
        embedding_stride: pixels of the U-Net's image per pixel of the embedding.
        fusion: ``xgfb`` or ``concat``.
        xgfb: of the X-gated fusion block.
        advanced: gate the other levels.

    Raises:
        ConfigurationError: an embedding that no doublings or halvings bring to the levels' resolutions.
    """

    def __init__(
        self,
        filters: Sequence[int],
        embed_channels: int,
        embedding_stride: int,
        *,
        fusion: Literal["xgfb", "concat"] = "xgfb",
        xgfb: XGFBOptions | None = None,
        advanced: bool = False,
    ) -> None:
        super().__init__()
        *inner, coarsest = filters
        coarsest_stride = 2 ** len(inner)
        if embedding_stride < 1 or coarsest_stride % embedding_stride:
            raise ConfigurationError(
                f"SAM's embedding has one pixel per {embedding_stride} px of the image, expected a power of two "
                f"up to {coarsest_stride} px, the coarsest level's. Change sam.input_scale."
            )
        self.to_coarsest = _halvings(coarsest_stride // embedding_stride)
        self.fusion: nn.Module = (
            XGatedFusionBlock(coarsest, embed_channels, xgfb or XGFBOptions())
            if fusion == "xgfb"
            else ConcatFusion(coarsest, embed_channels)
        )
        widths = [max(1, width // 2) for width in inner] if advanced else []
        self.to_level = nn.ModuleList(
            _to_level(embed_channels, width, embedding_stride, 2**level) for level, width in enumerate(widths)
        )
        self.gates = nn.ModuleList(
            ChannelGate(channels, width, "released") for channels, width in zip(inner, widths, strict=False)
        )
        self.levels = len(filters)
        initialise(self)

    def forward(self, level: int, features: Tensor, embedding: Tensor) -> Tensor:
        """Return the changed map of a level.

        Args:
            level: 0 is the finest.
            features: ``(B, C, h, w)``, the level's map.
            embedding: ``(B, embed_channels, g, g')``.
        """
        if level == self.levels - 1:
            return self.fusion(features, self.to_coarsest(embedding))
        if not self.gates:
            return features
        return self.gates[level](features, self.to_level[level](embedding))


def _halvings(factor: int) -> nn.Sequential:
    return nn.Sequential(*(MaxBlurPool() for _ in range(factor.bit_length() - 1)))


def _to_level(in_channels: int, out_channels: int, stride: int, level_stride: int) -> nn.Module:
    """Return what brings an embedding of ``stride`` px to a level of ``level_stride`` px."""
    factor = stride // level_stride
    if factor > 1:
        return nn.ConvTranspose2d(
            in_channels, out_channels, kernel_size=2 * factor, stride=factor, padding=factor // 2
        )
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1), *_halvings(level_stride // stride)
    )
