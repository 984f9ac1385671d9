"""From pixels to tokens."""

from torch import Tensor, nn

from nucsam_monai.networks.sam.variants import SAMVariant


class PatchEmbed(nn.Module):
    """Turn ``(B, 3, H, W)`` pixels into ``(B, H / patch, W / patch, width)`` tokens.

    The official models use one convolution per patch. The compact ones use stride-2 convolutions of kernel 3
    ("Early Convolutions Help Transformers See Better", Xiao et al., 2021), which learn from small data sets
    at once.
    """

    def __init__(self, variant: SAMVariant) -> None:
        super().__init__()
        self.proj: nn.Module
        if variant.stem == "patch":
            self.proj = nn.Conv2d(3, variant.width, kernel_size=variant.patch, stride=variant.patch)
        else:
            self.proj = _conv_stem(variant.width, steps=variant.patch.bit_length() - 1)

    def train(self, mode: bool = True) -> "PatchEmbed":
        """Switch the mode; a frozen stem keeps its batch statistics and stays in evaluation mode."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def forward(self, image: Tensor) -> Tensor:
        """Return the tokens, channels last."""
        return self.proj(image).permute(0, 2, 3, 1)


def _conv_stem(width: int, steps: int) -> nn.Sequential:
    """Halve the sides ``steps`` times; the channels double at each step and end at ``width``."""
    layers: list[nn.Module] = []
    channels = 3
    for step in range(steps):
        wider = width // 2 ** (steps - 1 - step)
        layers += [
            nn.Conv2d(channels, wider, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(wider),
            nn.GELU() if step < steps - 1 else nn.Identity(),
        ]
        channels = wider
    return nn.Sequential(*layers)
