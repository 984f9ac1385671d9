"""Convolutions in channels-last memory, in the fastest ways that a CPU has for training and for inference."""

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from nucsam_monai.networks.sam.kernels import is_recording, onednn_has


class NormReLU(nn.BatchNorm2d):
    """Normalise over the batch, then rectify.

    Args:
        channels: of the maps.
        eps: of the normalisation.
        limit: the largest value, 6 of ReLU6.
    """

    def __init__(self, channels: int, eps: float = 1e-5, limit: float = torch.inf) -> None:
        super().__init__(channels, eps)
        self.limit = limit

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(B, C, h, w)``."""
        normed = super().forward(input)
        return F.hardtanh_(normed, 0, self.limit) if self.limit < torch.inf else F.relu_(normed)


class ConvNorms(nn.Sequential):
    """Hold convolutions (:class:`SameConv`), each followed by a batch normalisation or a :class:`NormReLU`.

    In inference on a CPU each pair is one operation with scaled weights. They are scaled every time, which costs less
    than a tenth of what is saved.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(B, C, h, w)``."""
        layers: list[Any] = list(self)
        for convolution, norm in zip(layers[::2], layers[1::2], strict=True):
            if norm.training or not _joins(input):
                input = norm(convolution(input))
            else:
                input = _convolve_and_normalise(convolution, norm, input)
        return input


def _joins(maps: Tensor) -> bool:
    """Return whether convolution and normalisation of the maps can be one operation of oneDNN."""
    return (
        maps.is_cpu
        and not torch.is_grad_enabled()
        and not is_recording()
        and onednn_has("_convolution_pointwise", _dtype_of(maps))
    )


def _dtype_of(maps: Tensor) -> torch.dtype:
    """Return the type in which the maps are convolved."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else maps.dtype


def _convolve_and_normalise(convolution: "SameConv", norm: nn.BatchNorm2d, maps: Tensor) -> Tensor:
    dtype = _dtype_of(maps)
    scale = norm.weight * (norm.get_buffer("running_var") + norm.eps).rsqrt()
    weight, padding = convolution.widened()
    rectifier, limits = ("hardtanh", [0.0, norm.limit]) if isinstance(norm, NormReLU) else ("none", [])
    return torch.ops.mkldnn._convolution_pointwise(
        maps.to(dtype),
        (weight * scale[:, None, None, None]).to(dtype),
        (norm.bias - norm.get_buffer("running_mean") * scale).to(dtype),
        padding,
        convolution.stride,
        convolution.dilation,
        convolution.groups,
        rectifier,
        limits,
        "",
    )


def dense_gradient(maps: Tensor) -> Tensor:
    """Return the maps, whose gradient will lie in memory as they do: parts of a larger tensor are slow to work on."""
    if maps.requires_grad:
        maps = maps.view_as(maps)
        maps.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return maps


class SameConv(nn.Conv2d):
    """A convolution without bias and with TensorFlow's padding: ``(kernel - stride) // 2`` zeros before, more after.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: odd side of the kernel.
        stride: 1 or 2.
        dilation: 1 for stride 2.
        groups: of channels.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, dilation=dilation, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(B, C, h, w)`` into ``(B, C', h / stride, w / stride)``, sides multiples of the stride."""
        return self._convolve(input, input.dtype)

    def widened(self) -> tuple[Tensor, tuple[int, int]]:
        """Return kernels and zeros for all sides that do the same.

        With stride 2 the kernels get a row and a column of zeros for the zeros that are too many on the left and the
        top, so that no padded copy of the maps is made.
        """
        zeros = self.dilation[0] * (self.kernel_size[0] // 2)
        weight = F.pad(self.weight, (1, 0) * 2) if self.stride[0] > 1 else self.weight
        return weight, (zeros, zeros)

    def _convolve(self, maps: Tensor, dtype: torch.dtype) -> Tensor:
        if self.stride[0] > 1 and (torch.is_grad_enabled() or not maps.is_cpu):
            # The gradient of a wider kernel takes longer than a padded copy of the maps.
            after = self.kernel_size[0] // 2
            maps, weight, zeros = F.pad(maps, (after - 1, after) * 2), self.weight, (0, 0)
        else:
            weight, zeros = self.widened()
        return F.conv2d(maps.to(dtype), weight, None, self.stride, zeros, self.dilation, self.groups)


class DepthwiseConv(SameConv):
    """A depthwise convolution with TensorFlow's padding.

    Measured with AVX512-BF16: without gradients bfloat16 is two to three and a half times as fast as float32,
    but backward through stride 2 or dilation it takes one and a half to four times as long, and through kernel 5 unless
    :class:`_WideDepthwise` does it.

    Args:
        channels: in and out.
        kernel: odd side of the kernel.
        stride: 1 or 2.
        dilation: 1 for stride 2.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(channels, channels, kernel, stride, dilation, groups=channels)
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
