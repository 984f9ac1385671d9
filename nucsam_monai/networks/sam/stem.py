"""From pixels to tokens."""

from torch import Tensor, nn

from nucsam_monai.networks.sam.trunk import TRUNK_CHANNELS
from nucsam_monai.networks.sam.variants import SAMVariant


class PatchEmbed(nn.Module):
    """Turn ``(B, 3, H, W)`` pixels, or a trunk's last map, into ``(B, H / patch, W / patch, width)`` tokens.

    The official models use one convolution per patch. The compact ones use stride-2 convolutions of kernel 3
    ("Early Convolutions Help Transformers See Better", Xiao et al., 2021), which learn from small data sets at
    once, with instance normalisation. Layer normalisation over the channels would leave the faint contrast of
    fluorescence images as faint as it was, and batch normalisation would mix the statistics of domains that
    are trained in turn. Behind a trunk a token is one cell of its last map.
    """

    def __init__(self, variant: SAMVariant) -> None:
        super().__init__()
        self.proj: nn.Module
        if variant.stem == "efficientnet_lite0":
            self.proj = nn.Conv2d(TRUNK_CHANNELS[3], variant.width, kernel_size=1)
        elif variant.stem == "patch":
            self.proj = nn.Conv2d(3, variant.width, kernel_size=variant.patch, stride=variant.patch)
        else:
            self.proj = _conv_stem(variant.width, steps=variant.patch.bit_length() - 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the tokens, channels last."""
        # Every block adds to these tokens; strided over the channels each addition would take three times as long.
        return self.proj(image).permute(0, 2, 3, 1).contiguous()


def _conv_stem(width: int, steps: int) -> nn.Sequential:
    """Halve the sides ``steps`` times; the channels double at each step and end at ``width``.

    Behind every halving but the first, which would cost most, a second convolution sees the same scale.
    """
    layers: list[nn.Module] = []
    channels = 3
    for step in range(steps):
        wider = width // 2 ** (steps - 1 - step)
        layers += _normed_conv(channels, wider, stride=2)
        if step > 0:
            layers += _normed_conv(wider, wider, stride=1)
        channels = wider
    return nn.Sequential(*layers[:-1])  # the tokens are not rectified


def _normed_conv(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.InstanceNorm2d(out_channels, affine=True),
        nn.GELU(),
    ]
