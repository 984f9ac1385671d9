"""Convolution with a kernel of its own at every cell, without unfolding the neighbourhoods."""

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from nucsam_monai.utils.errors import ConfigurationError

MATRIX_CELLS = 2**8
"""Most cells of a map whose kernels are written as one matrix: SAM's windows of 14 x 14, a grid of 16 x 16."""


def nest_kernels(kernels: Sequence[Tensor]) -> Tensor:
    """Add kernels of different sizes at their centres.

    The sum of convolutions of one map is the convolution with the sum of the kernels; so three kernel sizes cost
    one convolution of the largest.

    Args:
        kernels: each ``(B, h, w, k * k)`` in row-major order, k odd.

    Returns:
        ``(B, h, w, K * K)``, K being the largest k.
    """
    largest = max(isqrt(kernel.shape[-1]) for kernel in kernels)
    nested = []
    for kernel in kernels:
        side = isqrt(kernel.shape[-1])
        margin = (largest - side) // 2
        nested.append(F.pad(kernel.unflatten(-1, (side, side)), [margin] * 4).flatten(-2))
    return torch.stack(nested).sum(dim=0)


def convolve_dynamically(cells: Tensor, kernels: Tensor) -> Tensor:
    """Give each cell the sum of its K x K neighbourhood, weighted by the cell's kernel.

    All channels share the kernel. Beyond its border a map is mirrored without the border cell repeated. Small
    maps are multiplied by a matrix of cells by cells, a few times as many products as necessary, but in one fast
    operation; in large maps the shifted maps are added up one after another. Unfolding would keep K * K copies
    of the map.

    Args:
        cells: ``(B, h, w, C)``.
        kernels: ``(B, h, w, K * K)`` in row-major order, K odd.

    Returns:
        ``(B, h, w, C)``.

    Raises:
        ConfigurationError: a side of the map is not larger than K // 2, so that mirroring is not possible.

    Example:
        >>> convolve_dynamically(torch.ones(1, 4, 4, 2), torch.ones(1, 4, 4, 9))[0, 0, 0].tolist()
        [9.0, 9.0]
    """
    height, width = cells.shape[1:3]
    reach = isqrt(kernels.shape[-1]) // 2
    if min(height, width) <= reach:
        raise ConfigurationError(
            f"dynamic convolution: found a map of {height} x {width} cells, expected sides of at least "
            f"{reach + 1}, because {reach} cells are mirrored at the border. Take larger images or windows."
        )
    if height * width <= MATRIX_CELLS:
        return _by_matrix(cells, kernels, reach)
    return _by_shifts(cells, kernels, reach)


def _by_matrix(cells: Tensor, kernels: Tensor, reach: int) -> Tensor:
    batch, height, width, channels = cells.shape
    neighbours = _neighbours(height, width, reach, cells.device)
    weights = kernels.flatten(1, 2)
    # Mirrored neighbours coincide with real ones, so weights are added, not written.
    matrix = weights.new_zeros(batch, height * width, height * width)
    matrix = matrix.scatter_add(2, neighbours.expand(batch, -1, -1), weights)
    return (matrix @ cells.flatten(1, 2).to(matrix.dtype)).view(batch, height, width, channels)


def _by_shifts(cells: Tensor, kernels: Tensor, reach: int) -> Tensor:
    height, width = cells.shape[1:3]
    cells = cells.to(torch.promote_types(cells.dtype, kernels.dtype))
    padded = F.pad(cells.permute(0, 3, 1, 2), [reach] * 4, mode="reflect").permute(0, 2, 3, 1).contiguous()
    side = 2 * reach + 1
    total = torch.zeros_like(cells)
    for tap in range(side * side):
        top, left = divmod(tap, side)
        shifted = padded[:, top : top + height, left : left + width]
        total = torch.addcmul(total, shifted, kernels[..., tap : tap + 1])
    return total


@lru_cache(maxsize=16)
def _neighbours(height: int, width: int, reach: int, device: torch.device) -> Tensor:
    """Return ``(h * w, K * K)`` int64: the cells that the taps of each cell's kernel fall on."""
    with torch.inference_mode(False):  # what is kept must also serve training
        offsets = torch.arange(-reach, reach + 1, device=device)
        rows = _mirror(torch.arange(height, device=device)[:, None] + offsets, height)
        columns = _mirror(torch.arange(width, device=device)[:, None] + offsets, width)
        # (h, 1, K, 1) and (1, w, 1, K)
        return (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(2).flatten(0, 1)


def _mirror(index: Tensor, length: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= length, 2 * (length - 1) - index, index)
