"""Splitting a token grid into square windows and merging it again."""

import torch
from torch import Tensor


def split_windows(grid: Tensor, side: int, fill: Tensor) -> Tensor:
    """Split a grid into windows of ``side`` x ``side``, padded at the bottom and right where it does not fit.

    Args:
        grid: ``(B, h, w, C)``.
        side: side of a window in tokens.
        fill: ``(C,)`` value of the padded cells.

    Returns:
        ``(B * rows * columns, side, side, C)``, windows in row-major order.
    """
    batch, height, width, channels = grid.shape
    below, right = -height % side, -width % side
    fill = fill.to(grid.dtype)
    if right:
        grid = torch.cat([grid, fill.expand(batch, height, right, channels)], dim=2)
    if below:
        grid = torch.cat([grid, fill.expand(batch, below, width + right, channels)], dim=1)
    rows, columns = (height + below) // side, (width + right) // side
    # (B, rows, side, columns, side, C) -> (B, rows, columns, side, side, C)
    windows = grid.reshape(batch, rows, side, columns, side, channels).transpose(2, 3)
    return windows.reshape(-1, side, side, channels)


def merge_windows(windows: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Undo :func:`split_windows` and drop the padded cells.

    Args:
        windows: ``(B * rows * columns, side, side, C)``.
        grid_size: height and width of the grid before padding.

    Returns:
        ``(B, h, w, C)``.
    """
    height, width = grid_size
    _, side, _, channels = windows.shape
    rows, columns = -(-height // side), -(-width // side)
    # (B, rows, columns, side, side, C) -> (B, rows, side, columns, side, C)
    grid = windows.reshape(-1, rows, columns, side, side, channels).transpose(2, 3)
    return grid.reshape(-1, rows * side, columns * side, channels)[:, :height, :width]
