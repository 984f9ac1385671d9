"""The auto-prompt generator of SAC: a U-Net that proposes where nuclei are and are not."""

from torch import Tensor, cat, nn

from nucsam_monai.utils.errors import ConfigurationError


class UNetGenerator(nn.Module):
    """U-Net (Ronneberger et al., 2015) with batch normalisation (SAC, section on the prompt generator).

    With its defaults it has the 7,763,041 parameters that SAC's parameter table adds to SAM: 32 to 256
    channels on four levels and 512 at the bottom.

    Args:
        in_channels: channels of the image.
        channels: channels of the finest level; every level below has twice as many.
        levels: number of down-samplings.

    Example:
        >>> UNetGenerator()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1, 64, 64])
    """

    def __init__(self, in_channels: int = 3, channels: int = 32, levels: int = 4) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(levels)]
        self.down = nn.ModuleList(
            double_convolution(before, after)
            for before, after in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.bottom = double_convolution(widths[-1], 2 * widths[-1])
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, kernel_size=2, stride=2) for width in reversed(widths)
        )
        self.up = nn.ModuleList(double_convolution(2 * width, width) for width in reversed(widths))
        self.head = nn.Conv2d(channels, 1, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, 1, H, W)`` from RGB images ``(B, 3, H, W)`` in [0, 1].

        Raises:
            ConfigurationError: a side cannot be halved ``levels`` times.
        """
        step = 2 ** len(self.down)
        if image.shape[-2] % step or image.shape[-1] % step:
            raise ConfigurationError(
                f"generator: found an image of {image.shape[-2]} x {image.shape[-1]} px, expected sides that "
                f"are multiples of {step} px. Pad the image or set generator.input_size."
            )
        skips = []
        features = image
        for block in self.down:
            skips.append(block(features))
            features = self.pool(skips[-1])
        features = self.bottom(features)
        for upsample, block in zip(self.upsample, self.up, strict=True):
            features = block(cat([upsample(features), skips.pop()], dim=1))
        return self.head(features)


def double_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return two times convolution 3 x 3 without bias, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
