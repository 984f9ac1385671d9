"""The convolution of an enlarged map, computed without the enlarged map."""

import torch
from torch import Tensor
from torch.nn import functional as F

_TAPS = 3


def convolve_enlarged(features: Tensor, weight: Tensor, bias: Tensor | None, factor: int) -> Tensor:
    """Return ``conv2d(interpolate(features, scale_factor=factor), weight, bias, padding=1)``.

    Enlarging bilinearly (``align_corners=False``) and convolving are both linear, so that channels can be mixed
    first, where the map is small: each of the nine taps gives a map of its own, and two matrices, one for
    columns and one for rows, enlarge, shift and add them. With few output channels and a large factor that
    is a small part of the work and memory; the results are equal up to rounding.

    Args:
        features: ``(B, C, h, w)``.
        weight: ``(O, C, 3, 3)``.
        bias: ``(O,)``, or none.
        factor: how many times the sides are enlarged.

    Returns:
        ``(B, O, factor * h, factor * w)``.

    Example:
        >>> convolve_enlarged(torch.ones(1, 2, 4, 4), torch.ones(5, 2, 3, 3), None, 4).shape
        torch.Size([1, 5, 16, 16])
    """
    batch, _, height, width = features.shape
    out_channels = weight.shape[0]
    taps = weight.permute(0, 2, 3, 1).reshape(out_channels * _TAPS * _TAPS, -1, 1, 1)
    mixed = F.conv2d(features, taps).unflatten(1, (out_channels, _TAPS, _TAPS))
    columns = mixed.permute(0, 1, 2, 4, 3, 5).reshape(batch, out_channels, _TAPS * height, _TAPS * width)
    rows = columns @ _enlarging_taps(width, factor, features)
    enlarged = _enlarging_taps(height, factor, features).mT @ rows
    return enlarged if bias is None else enlarged + bias[:, None, None]


def _enlarging_taps(side: int, factor: int, like: Tensor) -> Tensor:
    """Return ``(3 * side, factor * side)``: the enlarged line as each of the three taps sees it, zeros outside."""
    line = torch.eye(side, device=like.device, dtype=torch.float32)[None]
    enlarged = F.interpolate(line, scale_factor=factor, mode="linear", align_corners=False)[0]
    padded = F.pad(enlarged, (1, 1))
    shifted = [padded[:, tap : tap + side * factor] for tap in range(_TAPS)]
    return torch.cat(shifted).to(like.dtype)
