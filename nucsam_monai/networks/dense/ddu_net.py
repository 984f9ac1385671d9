"""DDU-Net ("DDU-Net: Dual-Decoder-U-Net for Road Extraction [...]", Wang et al., 2022)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nucsam_monai.networks.dense.unet import double_conv
from nucsam_monai.utils.errors import require_package

_RATES = (1, 2, 4, 8)


class DilatedAttention(nn.Module):
    """Distil several scales: a cascade of dilated convolutions, each weighed by attention, and the image's mean.

    The paper's dilated convolution attention module (DCAM); the attention is timm's CBAM (Woo et al., 2018).

    Args:
        channels: in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        require_package("timm", "DDU-Net")
        from timm.layers.cbam import CbamModule  # takes a second, which other networks need not spend

        self.cascade = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, kernel_size=3, padding=rate, dilation=rate, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            )
            for rate in _RATES
        )
        self.attentions = nn.ModuleList(CbamModule(channels) for _ in _RATES)
        self.mean = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, kernel_size=1), nn.ReLU()
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(B, channels, h, w)`` of as many."""
        distilled = features + self.mean(features)
        for dilated, attention in zip(self.cascade, self.attentions, strict=True):
            features = dilated(features)
            distilled = distilled + attention(features)
        return distilled


class _Decoder(nn.Module):
    """Enlarge the coarsest of the given maps and join it with the finer ones, level by level."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.attention = DilatedAttention(widths[-1])
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(before, after, kernel_size=2, stride=2) for before, after in pairs
        )
        self.joins = nn.ModuleList(double_conv(2 * after, after) for _, after in pairs)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        features = self.attention(maps[-1])
        for upsample, join, skip in zip(self.upsample, self.joins, maps[-2::-1], strict=True):
            features = join(torch.cat([upsample(features), skip], dim=1))
        return features


class DDUNet(nn.Module):
    """DDU-Net: a U-Net with a second, small decoder for detail, and dilated attention in front of both.

    The paper's abstract leaves sizes open: the widths are those of U-Net, the dilations 1, 2, 4 and 8, and the small
    decoder begins two levels below the finest.

    Args:
        outputs: logits per pixel.
        filters: channels of the levels, finest first.
        small_levels: levels that the small decoder sees.

    Example:
        >>> sum(parameter.numel() for parameter in DDUNet().parameters())
        73546977
    """

    def __init__(
        self, outputs: int = 1, filters: Sequence[int] = (64, 128, 256, 512, 1024), small_levels: int = 3
    ) -> None:
        super().__init__()
        self.small_levels = small_levels
        self.pool = nn.MaxPool2d(2)
        self.encoder = nn.ModuleList(
            double_conv(before, after) for before, after in zip([3, *filters[:-1]], filters, strict=True)
        )
        self.large = _Decoder(filters)
        self.small = _Decoder(filters[:small_levels])
        self.head = nn.Conv2d(2 * filters[0], outputs, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, outputs, H, W)`` of ``(B, 3, H, W)``, sides multiples of 2 to the number of poolings."""
        maps: list[Tensor] = []
        for block in self.encoder:
            maps.append(block(self.pool(maps[-1]) if maps else image))
        return self.head(torch.cat([self.large(maps), self.small(maps[: self.small_levels])], dim=1))
