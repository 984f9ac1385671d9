"""Micro-Net ("Micro-Net: A unified model for segmentation of various objects [...]", Raza et al., 2019)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _convolutions(in_channels: int, out_channels: int, *, normalised: bool = False) -> nn.Sequential:
    """Return two times convolution 3 x 3 and tanh, on request with batch normalisation between them."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.Tanh(),
        nn.BatchNorm2d(out_channels) if normalised else nn.Identity(),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
        nn.Tanh(),
    )


class _Join(nn.Module):
    """Enlarge the coarser map and join it with the encoder's of the same size (branches B6 to B9)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        self.convolutions = _convolutions(out_channels, out_channels)
        self.coarse = nn.ConvTranspose2d(out_channels, out_channels, kernel_size=5, padding=2)
        self.skip = nn.ConvTranspose2d(out_channels, out_channels, kernel_size=5, padding=2)
        self.join = nn.Conv2d(2 * out_channels, out_channels, kernel_size=1)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        coarse = self.coarse(self.convolutions(self.upsample(features)))
        return torch.tanh(self.join(torch.cat([coarse, self.skip(skip)], dim=1)))


class MicroNet(nn.Module):
    """Micro-Net: each level of the encoder sees the resized image too, and three levels of the decoder give outputs.

    The paper's convolutions don't pad, which halves the deepest map on the way; here they do, and it is pooled.

    Args:
        outputs: logits per pixel.
        channels: channels of each of the two paths at the finest level; every coarser level has twice as many.

    Example:
        >>> MicroNet(channels=2).eval()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 1, 32, 32])
    """

    def __init__(self, outputs: int = 1, channels: int = 64) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(4)]
        self.pool = nn.MaxPool2d(2)
        self.paths = nn.ModuleList(
            _convolutions(before, width, normalised=True)
            for before, width in zip([3, *(2 * one for one in widths)], widths, strict=False)
        )
        self.resized = nn.ModuleList(_convolutions(3, width, normalised=True) for width in widths)
        self.bottom = _convolutions(2 * widths[-1], 4 * widths[-1])
        self.joins = nn.ModuleList(_Join(4 * width, 2 * width) for width in reversed(widths))
        self.enlarge = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(2 * width, width, kernel_size=2**level, stride=2**level),
                nn.Conv2d(width, width, kernel_size=3, padding=1),
                nn.Tanh(),
            )
            for level, width in enumerate(widths[:3], start=1)
        )
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Dropout2d(0.5), nn.Conv2d(width, outputs, kernel_size=3, padding=1))
            for width in (sum(widths[:3]), *widths[:3])
        )

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Segment images ``(B, 3, H, W)``, sides multiples of 32.

        Returns:
            Logits ``(B, outputs, H, W)``; in training a list of those and of three auxiliary outputs.
        """
        features, skips = image, []
        for level, (path, resized) in enumerate(zip(self.paths, self.resized, strict=True), start=1):
            size = (image.shape[-2] >> level, image.shape[-1] >> level)
            smaller = F.interpolate(image, size=size, mode="bicubic", align_corners=False)
            features = torch.cat([self.pool(path(features)), resized(smaller)], dim=1)
            skips.append(features)
        features, decoded = self.bottom(self.pool(features)), []
        for join, skip in zip(self.joins, reversed(skips), strict=True):
            features = join(features, skip)
            decoded.append(features)
        maps = [enlarge(one) for enlarge, one in zip(self.enlarge, decoded[:0:-1], strict=True)]
        main = self.heads[0](torch.cat(maps, dim=1))
        if not self.training:
            return main
        return [main, *(head(one) for head, one in zip(self.heads[1:], maps, strict=True))]
