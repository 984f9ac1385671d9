"""ResUNet++ ("ResUNet++: An Advanced Architecture for Medical Image Segmentation", Jha et al., 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation

_RATES = (1, 6, 12, 18)
_SQUEEZE = 8


def _ready_conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Return batch normalisation, ReLU and convolution 3 x 3, in the order of pre-activation."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),  # not in place: the shortcut takes the same map
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, stride=stride),
    )


class _Residual(nn.Module):
    """Two convolutions and a shortcut; the first block of the network has nothing to normalise yet."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, is_stem: bool = False
    ) -> None:
        super().__init__()
        first = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.convs = nn.Sequential(
            first if is_stem else _ready_conv(in_channels, out_channels, stride),
            _ready_conv(out_channels, out_channels),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride), nn.BatchNorm2d(out_channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.convs(features) + self.shortcut(features)


class _Bridge(nn.Module):
    """Atrous spatial pyramid pooling: dilated convolutions, added up and mixed."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=rate, dilation=rate),
                nn.BatchNorm2d(out_channels),
            )
            for rate in _RATES
        )
        self.mix = nn.Conv2d(out_channels, out_channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        return self.mix(torch.stack([branch(features) for branch in self.branches]).sum(dim=0))


class _Decoder(nn.Module):
    """Weigh the coarse map by attention to the encoder's map, enlarge it and join the two."""

    def __init__(self, coarse: int, skip: int, out_channels: int) -> None:
        super().__init__()
        self.of_skip = nn.Sequential(_ready_conv(skip, coarse), nn.MaxPool2d(2))
        self.of_coarse = _ready_conv(coarse, coarse)
        self.attention = _ready_conv(coarse, coarse)
        self.join = _Residual(coarse + skip, out_channels)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        weighed = coarse * self.attention(self.of_skip(skip) + self.of_coarse(coarse))
        return self.join(torch.cat([F.interpolate(weighed, scale_factor=2), skip], dim=1))


class ResUNetPlusPlus(nn.Module):
    """ResUNet++: residual units, squeeze and excitation, atrous pyramids, and attention in the decoder.

    Args:
        outputs: logits per pixel.
        filters: channels of the stem, of the three levels below it, and of the bridge.

    Example:
        >>> sum(parameter.numel() for parameter in ResUNetPlusPlus().parameters())
        16190365
    """

    def __init__(self, outputs: int = 1, filters: Sequence[int] = (32, 64, 128, 256, 512)) -> None:
        super().__init__()
        *skips, deepest, bridge = filters
        self.stem = _Residual(3, skips[0], is_stem=True)
        self.excitations = nn.ModuleList(SqueezeExcitation(width, width // _SQUEEZE) for width in skips)
        self.encoders = nn.ModuleList(
            _Residual(before, after, stride=2)
            for before, after in zip(skips, [*skips[1:], deepest], strict=True)
        )
        self.bridge = _Bridge(deepest, bridge)
        self.decoders = nn.ModuleList(
            _Decoder(coarse, skip, 2 * skip)
            for coarse, skip in zip([bridge, deepest, skips[2]], reversed(skips), strict=True)
        )
        self.pyramid = _Bridge(2 * skips[0], skips[0])
        self.head = nn.Conv2d(skips[0], outputs, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, outputs, H, W)`` of ``(B, 3, H, W)``, sides multiples of 8."""
        features = self.stem(image)
        skips = []
        for excitation, encoder in zip(self.excitations, self.encoders, strict=True):
            skips.append(features)
            features = encoder(excitation(features))
        features = self.bridge(features)
        for decoder in self.decoders:
            features = decoder(features, skips.pop())
        return self.head(self.pyramid(features))
