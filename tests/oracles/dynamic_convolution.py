"""MALA's convolution by its definition: every neighbourhood is unfolded, once for each kernel size."""

from math import isqrt

import torch
from torch.nn import functional as F


def convolve(cells, kernels):
    """Convolve (B, h, w, C) cells with (B, h, w, k * k) kernels; mirrored border."""
    batch, height, width, channels = cells.shape
    side = isqrt(kernels.shape[-1])
    padded = F.pad(cells.permute(0, 3, 1, 2), [side // 2] * 4, mode="reflect")
    neighbourhoods = F.unfold(padded, side).view(batch, channels, side * side, height, width)
    return torch.einsum("bcnhw,bhwn->bhwc", neighbourhoods, kernels)


def mala(adapter, tokens):
    """One MALA with learnable kernels in evaluation mode, from its equations."""
    normed = F.layer_norm(tokens, tokens.shape[-1:], adapter.norm.weight, adapter.norm.bias, 1e-6)
    inner = adapter.down(adapter.gamma * normed + adapter.gamma_x * tokens)
    weights, biases = adapter.predict.weight.split([9, 25, 49]), adapter.predict.bias.split([9, 25, 49])
    local = 0
    for weight, bias in zip(weights, biases, strict=True):
        logits = F.conv2d(inner.permute(0, 3, 1, 2), weight, bias, padding=1)
        local = local + convolve(inner, logits.softmax(dim=1).permute(0, 2, 3, 1))
    inner = local / 3 + inner
    inner = adapter.mix(inner) + inner
    return tokens + adapter.up(F.gelu(inner))
