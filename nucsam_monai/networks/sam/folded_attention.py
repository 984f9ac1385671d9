"""Attention with relative positions and padded cells, as plain attention on widened heads."""

import torch
from torch import Tensor
from torch.nn import functional

from nucsam_monai.networks.sam.relative_position import padding_term, relative_position_terms


def folded_attention(
    qkv: Tensor, heads: int, positions_h: Tensor, positions_w: Tensor, padding: Tensor | None = None
) -> Tensor:
    """Attend among the tokens of each window with decomposed relative positions.

    The query at (i, j) is ``[s q, term of every key row, term of every key column]`` and the key at (k, l) is
    ``[k, one-hot k, one-hot l]``; their product is ``s q . k + row term + column term``. Attention at scale 1
    over them never makes a tensor with an entry per pair, and needs no mask, whose gradient keeps PyTorch
    from its fused kernels.

    Where the windows are cut by the border of the grid, all padded cells together are one more key, which
    has a component of its own (see :func:`~nucsam_monai.networks.sam.relative_position.padding_term`).

    Args:
        qkv: ``(..., h, w, 3 * heads * C)`` queries, keys and values of one window after another.
        heads: attention heads.
        positions_h: ``(rows, rows, C)`` relative positions along the height of a whole window.
        positions_w: ``(columns, columns, C)`` along its width.
        padding: ``(3 * heads * C,)`` query, key and value of the padded cells; needed where ``h < rows`` or
            ``w < columns``.

    Returns:
        ``(..., h, w, heads * C)``.
    """
    height, width = qkv.shape[-3:-1]
    # (..., h, w, 3 * heads * C) -> 3 x (..., heads, h, w, C)
    query, key, value = qkv.unflatten(-1, (3, heads, -1)).movedim((-3, -2), (0, -4)).unbind(0)
    channels = query.shape[-1]
    along_h, along_w = relative_position_terms(query, positions_h, positions_w)
    parts = [query * channels**-0.5, along_h[..., :height], along_w[..., :width]]
    if padding is not None:
        parts.append(padding_term(along_h, along_w).to(query.dtype))
    wide_query = torch.cat(parts, dim=-1)
    extra = wide_query.shape[-1] - channels

    one_hot = functional.pad(_one_hot_positions(height, width, like=key), (0, extra - height - width))
    wide_key = _flatten_cells(torch.cat([key, one_hot.expand(*key.shape[:-1], extra)], dim=-1))
    wide_value = _flatten_cells(functional.pad(value, (0, extra)))  # fused kernels demand one width
    if padding is not None:
        _, padded_key, padded_value = padding.to(key.dtype).reshape(3, heads, 1, channels).unbind(0)
        own = functional.pad(functional.pad(padded_key, (0, extra - 1)), (0, 1), value=1.0)
        wide_key = _append_cell(wide_key, own)
        wide_value = _append_cell(wide_value, functional.pad(padded_value, (0, extra)))
    attended = functional.scaled_dot_product_attention(
        _flatten_cells(wide_query), wide_key, wide_value, scale=1.0
    )
    # (N, heads, h * w, C + extra) -> (..., h, w, heads * C)
    return attended[..., :channels].transpose(1, 2).reshape(*qkv.shape[:-1], heads * channels)


def _one_hot_positions(height: int, width: int, like: Tensor) -> Tensor:
    """Return ``(h, w, h + w)``: the one-hot row and the one-hot column of each cell."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device)[:, None].expand(-1, width, -1)
    columns = torch.eye(width, dtype=like.dtype, device=like.device)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1)


def _flatten_cells(cells: Tensor) -> Tensor:
    """Turn ``(..., heads, h, w, C)`` into ``(N, heads, h * w, C)``."""
    return cells.flatten(-3, -2).flatten(0, -4)


def _append_cell(cells: Tensor, cell: Tensor) -> Tensor:
    """Append ``(heads, 1, C)`` to each window of ``(N, heads, cells, C)``."""
    return torch.cat([cells, cell.expand(cells.shape[0], -1, -1, -1)], dim=2)
