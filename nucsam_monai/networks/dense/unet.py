"""U-Net ("U-Net: Convolutional Networks for Biomedical Image Segmentation", Ronneberger et al., 2015)."""

from torch import Tensor, cat, nn


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return two times convolution 3 x 3 without bias, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class OriginalUNet(nn.Module):
    """U-Net with zero padding and batch normalisation.

    The paper crops the maps of the encoder instead of padding, so that the mask is smaller than the image, and
    normalises nothing; with both changes it is what later papers compare with.

    Args:
        in_channels: channels of the image.
        outputs: logits per pixel.
        channels: channels of the finest level; every level below has twice as many.
        levels: number of downsamplings.

    Example:
        >>> sum(parameter.numel() for parameter in OriginalUNet().parameters())
        31037633
    """

    def __init__(self, in_channels: int = 3, outputs: int = 1, channels: int = 64, levels: int = 4) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(levels)]
        self.down = nn.ModuleList(
            double_conv(before, after)
            for before, after in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.bottom = double_conv(widths[-1], 2 * widths[-1])
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, kernel_size=2, stride=2) for width in reversed(widths)
        )
        self.up = nn.ModuleList(double_conv(2 * width, width) for width in reversed(widths))
        self.head = nn.Conv2d(channels, outputs, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, outputs, H, W)`` of ``(B, in_channels, H, W)``, sides multiples of ``2 ** levels``."""
        skips = []
        features = image
        for block in self.down:
            skips.append(block(features))
            features = self.pool(skips[-1])
        features = self.bottom(features)
        for upsample, block in zip(self.upsample, self.up, strict=True):
            features = block(cat([upsample(features), skips.pop()], dim=1))
        return self.head(features)
