"""Convolutions that networks for one mask per prompt are made of."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

_TAPS = 9


def conv_bn_relu(inputs: int, outputs: int, side: int) -> nn.Sequential:
    """Return a convolution of odd kernel ``side`` without bias that keeps the size, BN and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def convolve_joined(conv: nn.Conv2d, shared: Tensor, own: Tensor, owners: Tensor) -> Tensor:
    """Return ``conv(cat([shared[owners], own]))`` and convolve what an image's prompts share only once.

    Args:
        conv: a plain convolution of ``A + C`` channels.
        shared: ``(B, A, h, w)`` of the images.
        own: ``(N, C, h, w)`` of the prompts.
        owners: ``(N,)`` int64, the image of each prompt.
    """
    ours, theirs = conv.weight.split([shared.shape[1], own.shape[1]], dim=1)
    once = F.conv2d(shared, ours, conv.bias, conv.stride, conv.padding)
    return once.index_select(0, owners) + F.conv2d(own, theirs, None, conv.stride, conv.padding)


class ModulatedDeformConv(nn.Module):
    """3 x 3 convolution whose taps are moved and weighted at every pixel ("Deformable ConvNets v2", Zhu 2019).

    At first no tap is moved, and each has weight one half.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.predict = nn.Conv2d(inputs, 3 * _TAPS, 3, padding=1)
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)
        self.conv = DeformConv2d(inputs, outputs, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve in float32.

        Args:
            maps: ``(N, inputs, h, w)``.
            prediction: ``(N, 27, h, w)`` of :attr:`predict`, or of the same layer applied in parts.

        Returns:
            ``(N, outputs, h, w)`` and the largest move of a tap along an axis, ``(N,)`` in pixels.
        """
        moves, weights = prediction.float().split([2 * _TAPS, _TAPS], dim=1)
        with torch.autocast(device_type=maps.device.type, enabled=False):
            convolved = self.conv(maps.float(), moves, torch.sigmoid(weights))
        return convolved.to(maps.dtype), moves.detach().abs().amax(dim=(1, 2, 3))
