"""The heads of the nuclei prompter."""

from torch import Tensor, nn

from nucsam_monai.networks.blocks.feature_pyramid import FeaturePyramid


def point_head(channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """Return a two-layer perceptron on the vector of an anchor point, shared over all positions."""
    return nn.Sequential(
        nn.Linear(channels, channels),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(channels, out_channels),
    )


class NucleiMaskHead(nn.Module):
    """A mask of all nuclei from a feature pyramid of its own (PromptNucSeg, auxiliary task).

    The authors' code pads the last 1 x 1 convolution and stretches the larger map, which displaces the mask
    by up to a few pixels; here nothing is padded.

    Args:
        in_channels: channels of the backbone's stages, the finest first.
        channels: channels of the pyramid.
    """

    def __init__(self, in_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(in_channels, channels, levels=1)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 1, kernel_size=1),
        )

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Return logits ``(B, 1, h, w)`` of the finest stage's size."""
        (finest,) = self.pyramid(stages)
        return self.head(finest)
