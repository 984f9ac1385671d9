"""Views of a token grid as windows, and the regions of it in which all windows have the same real size."""

import torch
from torch import Tensor

Span = tuple[int, int, int]


def split_windows(grid: Tensor, height: int, width: int) -> Tensor:
    """View a grid as windows, in row-major order; no number is copied.

    Args:
        grid: ``(B, rows * height, columns * width, C)``.
        height: height of a window in tokens.
        width: width of a window in tokens.

    Returns:
        ``(B, rows, columns, height, width, C)``.
    """
    return grid.unflatten(2, (-1, width)).unflatten(1, (-1, height)).transpose(2, 3)


def merge_windows(windows: Tensor) -> Tensor:
    """Undo :func:`split_windows`.

    Args:
        windows: ``(B, rows, columns, height, width, C)``.

    Returns:
        ``(B, rows * height, columns * width, C)``.
    """
    return windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def pad_to_windows(grid: Tensor, side: int, fill: Tensor) -> Tensor:
    """Fill a grid up at the bottom and right until it falls into windows of ``side`` x ``side``.

    Args:
        grid: ``(B, h, w, C)``.
        side: side of a window in tokens.
        fill: ``(C,)`` value of the padded cells.
    """
    batch, height, width, channels = grid.shape
    below, right = -height % side, -width % side
    fill = fill.to(grid.dtype)
    if right:
        grid = torch.cat([grid, fill.expand(batch, height, right, channels)], dim=2)
    if below:
        grid = torch.cat([grid, fill.expand(batch, below, width + right, channels)], dim=1)
    return grid


def window_spans(length: int, side: int) -> list[Span]:
    """Group the windows along one axis by the number of real tokens in them.

    Returns:
        ``(start, stop, extent)`` of each group: the tokens ``start`` to ``stop`` lie in windows that hold
        ``extent`` of them; at most one group of whole windows, and the last window where it is cut.

    Example:
        >>> window_spans(64, 14)
        [(0, 56, 14), (56, 64, 8)]
    """
    whole = length - length % side
    spans = [(0, whole, side), (whole, length, length - whole)]
    return [span for span in spans if span[0] < span[1]]
