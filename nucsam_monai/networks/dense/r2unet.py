"""R2U-Net ("Recurrent Residual Convolutional Neural Network based on U-Net", Alom et al., 2018)."""

import torch
from torch import Tensor, nn


def _conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class _Recurrent(nn.Module):
    """One convolution that sees its input again, together with its own output, ``steps`` times."""

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.conv = _conv(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        state = self.conv(features)
        for _ in range(self.steps):
            state = self.conv(features + state)
        return state


class _RecurrentResidual(nn.Module):
    """Two recurrent convolutions and a shortcut, behind a convolution 1 x 1 that sets the channels."""

    def __init__(self, in_channels: int, out_channels: int, steps: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        self.recurrent = nn.Sequential(_Recurrent(out_channels, steps), _Recurrent(out_channels, steps))

    def forward(self, features: Tensor) -> Tensor:
        features = self.widen(features)
        return features + self.recurrent(features)


class R2UNet(nn.Module):
    """R2U-Net: a U-Net of recurrent residual units.

    Args:
        outputs: logits per pixel.
        channels: channels of the finest level; every coarser level has twice as many.
        levels: number of downsamplings.
        steps: the paper's t, how often a convolution sees its own output.

    Example:
        >>> sum(parameter.numel() for parameter in R2UNet().parameters())
        39091393
    """

    def __init__(self, outputs: int = 1, channels: int = 64, levels: int = 4, steps: int = 2) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(levels + 1)]
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(
            _RecurrentResidual(before, after, steps)
            for before, after in zip([3, *widths[:-1]], widths, strict=True)
        )
        finer = widths[-2::-1]
        self.upsample = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2), _conv(2 * width, width)) for width in finer
        )
        self.up = nn.ModuleList(_RecurrentResidual(2 * width, width, steps) for width in finer)
        self.head = nn.Conv2d(channels, outputs, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, outputs, H, W)`` of ``(B, 3, H, W)``, sides multiples of ``2 ** levels``."""
        maps: list[Tensor] = []
        for block in self.down:
            maps.append(block(self.pool(maps[-1]) if maps else image))
        features = maps.pop()
        for upsample, block in zip(self.upsample, self.up, strict=True):
            features = block(torch.cat([maps.pop(), upsample(features)], dim=1))
        return self.head(features)
