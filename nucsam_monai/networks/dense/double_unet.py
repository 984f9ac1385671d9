"""DoubleU-Net ("DoubleU-Net: A Deep Convolutional Neural Network for Medical Image Segmentation", Jha et al., 2020)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import SqueezeExcitation

from nucsam_monai.networks.dense.unet import double_conv
from nucsam_monai.networks.sam.weights import load_strictly, read_tensors

_RATES = (6, 12, 18)
_SQUEEZE = 8
_PYRAMID = 64


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return two convolutions, and squeeze and excitation."""
    return nn.Sequential(
        double_conv(in_channels, out_channels),
        SqueezeExcitation(out_channels, max(1, out_channels // _SQUEEZE)),
    )


def _pyramid(in_channels: int) -> ASPP:
    """Return torchvision's atrous spatial pyramid pooling.

    The mean over the image is not normalised, as one pixel of one image has no statistics, and no channel is left out
    at random.
    """
    pyramid = ASPP(in_channels, _RATES, _PYRAMID)
    pyramid.convs[-1][2] = nn.Identity()
    pyramid.project[3] = nn.Identity()
    return pyramid


class _VGGEncoder(nn.Module):
    """The convolutions of VGG-19 (Simonyan and Zisserman, 2015), cut before each pooling.

    Args:
        shrink: the channels are divided by it.
    """

    def __init__(self, shrink: int) -> None:
        super().__init__()
        layers = [width if isinstance(width, str) else width // shrink for width in cfgs["E"][:-1]]
        self.channels = [width // shrink for width in (64, 128, 256, 512, 512)]
        self.features = make_layers(layers)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the map of every level, finest first."""
        maps = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(image)
            image = layer(image)
        return [*maps, image]


class _Decoder(nn.Module):
    """Enlarge a map and join it with maps of encoders, level by level."""

    def __init__(self, skips: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.blocks = nn.ModuleList(
            _block(before + skip, width)
            for before, skip, width in zip([_PYRAMID, *widths[:-1]], skips, widths, strict=True)
        )

    def forward(self, features: Tensor, *skips: Sequence[Tensor]) -> Tensor:
        """Return the finest map.

        Args:
            features: the coarsest map.
            skips: the maps of each encoder, coarsest first.
        """
        for block, *finer in zip(self.blocks, *skips, strict=True):
            features = block(torch.cat([self.enlarge(features), *finer], dim=1))
        return features


class DoubleUNet(nn.Module):
    """DoubleU-Net: a second U-Net sees the image times the mask of a first one, whose encoder is VGG-19.

    Args:
        outputs: logits per pixel; the first one's probability is the mask that the image is multiplied by.
        shrink: all channels are divided by it.

    Example:
        >>> sum(parameter.numel() for parameter in DoubleUNet().parameters())
        29288630
    """

    def __init__(self, outputs: int = 1, shrink: int = 1) -> None:
        super().__init__()
        widths = [width // shrink for width in (256, 128, 64, 32)]
        self.first_encoder = _VGGEncoder(shrink)
        *first, coarsest = self.first_encoder.channels
        self.first_pyramid = _pyramid(coarsest)
        self.first_decoder = _Decoder(first[::-1], widths)
        self.first_head = nn.Conv2d(widths[-1], outputs, kernel_size=1)
        second = widths[::-1]
        self.pool = nn.MaxPool2d(2)
        self.second_encoder = nn.ModuleList(
            _block(before, after) for before, after in zip([3, *second[:-1]], second, strict=True)
        )
        self.second_pyramid = _pyramid(second[-1])
        self.second_decoder = _Decoder(
            [one + other for one, other in zip(first[::-1], widths, strict=True)], widths
        )
        self.second_head = nn.Conv2d(widths[-1], outputs, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Segment images ``(B, 3, H, W)``, sides multiples of 16.

        Returns:
            Logits ``(B, outputs, H, W)`` of the second network; in training a list of them and those of the first.
        """
        *first, coarsest = self.first_encoder(image)
        first.reverse()
        rough = self.first_head(self.first_decoder(self.first_pyramid(coarsest), first))
        features = image * rough[:, :1].sigmoid()
        second: list[Tensor] = []
        for block in self.second_encoder:
            second.insert(0, block(features))
            features = self.pool(second[0])
        fine = self.second_head(self.second_decoder(self.second_pyramid(features), first, second))
        return [fine, rough] if self.training else fine

    def load_encoder(self, path: Path | str) -> None:
        """Start the first encoder from VGG-19's weights, as torchvision names them.

        Raises:
            CheckpointError: the file cannot be read or holds other tensors.
        """
        state = read_tensors(path)
        convolutions = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
        load_strictly(self.first_encoder, convolutions, source=f"{path}")
