"""Anchor points on a regular grid, and what feature maps say at a point."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

SampleAlignment = Literal["corrected", "released"]


def anchor_grid(height: int, width: int, step: int, device: torch.device | None = None) -> Tensor:
    """Return the centres of the cells of a grid (PromptNucSeg, section on the nuclei prompter).

    Args:
        height: rows of the grid.
        width: columns of the grid.
        step: side of a cell in pixels.
        device: where the result lies.

    Returns:
        ``(height, width, 2)`` float32 as (x, y) in pixels.

    Example:
        >>> anchor_grid(1, 2, step=8)
        tensor([[[ 4.,  4.],
                 [12.,  4.]]])
    """
    x = step / 2 + step * torch.arange(width, dtype=torch.float32, device=device)
    y = step / 2 + step * torch.arange(height, dtype=torch.float32, device=device)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def sample_at(
    features: Tensor, points: Tensor, stride: int, alignment: SampleAlignment = "corrected"
) -> Tensor:
    """Interpolate a feature map bilinearly at points of the image.

    Args:
        features: ``(B, C, h, w)``, each cell standing for ``stride`` x ``stride`` pixels.
        points: ``(B, n, m, 2)`` float32 as (x, y) in pixels of the image.
        stride: side of a cell in pixels.
        alignment: ``corrected`` reads the value of a cell at the cell's centre, and at the border of the map
            that of the outermost cells. ``released`` is the authors' code, for their published weights: it
            stretches the centres of the outermost cells to the border of the image, which shifts samples by
            up to half a cell.

    Returns:
        ``(B, C, n, m)`` in the type of ``features``.
    """
    height, width = stride * features.shape[-2], stride * features.shape[-1]
    grid = torch.stack([points[..., 0] * (2 / width) - 1, points[..., 1] * (2 / height) - 1], dim=-1)
    released = alignment == "released"
    # half precision would round coordinates to whole cells
    sampled = F.grid_sample(
        features.float(),
        grid.float(),
        mode="bilinear",
        padding_mode="zeros" if released else "border",
        align_corners=released,
    )
    return sampled.to(features.dtype)
