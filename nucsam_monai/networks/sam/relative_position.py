"""The learned positions of SAM's image encoder, at any grid size."""

import torch
from torch import Tensor
from torch.nn import functional


def resize_position_grid(table: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Interpolate an absolute position table to another token grid.

    Args:
        table: ``(1, rows, columns, C)``.
        size: height and width of the wanted grid.
        mode: ``"bicubic"`` or ``"bilinear"``, without antialiasing and with unaligned corners.

    Returns:
        ``(1, h, w, C)``; the table itself where the size is its own.
    """
    if table.shape[1:3] == torch.Size(size):
        return table
    resized = functional.interpolate(table.permute(0, 3, 1, 2), size=size, mode=mode, align_corners=False)
    return resized.permute(0, 2, 3, 1)


def relative_positions(table: Tensor, length: int) -> Tensor:
    """Look up the relative position of every pair of coordinates along one axis.

    Args:
        table: ``(rows, C)``; it is interpolated linearly where it has not ``2 * length - 1`` rows.
        length: number of tokens along the axis.

    Returns:
        ``(length, length, C)``: entry ``[i, k]`` belongs to the query at ``i`` and the key at ``k``.
    """
    rows = 2 * length - 1
    if table.shape[0] != rows:
        table = functional.interpolate(table.T.unsqueeze(0), size=rows, mode="linear", align_corners=False)[
            0
        ].T
    position = torch.arange(length, device=table.device)
    return table[position[:, None] - position[None, :] + length - 1]


def relative_position_terms(
    query: Tensor, table_h: Tensor, table_w: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the two parts of the decomposed relative position term of the attention logits.

    "MViTv2" (Li et al., 2022), Eq. 4: ``q . R_h[i - k] + q . R_w[j - l]`` for a query at (i, j) and a key at
    (k, l). The query is the unscaled one.

    Args:
        query: ``(B, heads, h * w, C)``.
        table_h: ``(rows, C)`` relative positions along the height.
        table_w: ``(rows, C)`` relative positions along the width.
        size: height and width of the token grid.

    Returns:
        ``(B, heads, h, w, h)`` and ``(B, heads, h, w, w)``: the term of each row and each column of keys.
    """
    height, width = size
    grid = query.unflatten(2, (height, width))
    along_h = torch.einsum("bnijc,ikc->bnijk", grid, relative_positions(table_h, height))
    along_w = torch.einsum("bnijc,jlc->bnijl", grid, relative_positions(table_w, width))
    return along_h, along_w


def relative_position_bias(along_h: Tensor, along_w: Tensor) -> Tensor:
    """Add the parts of :func:`relative_position_terms` up to one term per pair of tokens.

    Returns:
        ``(B, heads, h * w, h * w)``, to be added to the scaled product of queries and keys.
    """
    # (B, heads, h, w, h, 1) + (B, heads, h, w, 1, w)
    return (along_h.unsqueeze(-1) + along_w.unsqueeze(-2)).flatten(4).flatten(2, 3)


def fold_relative_positions(
    query: Tensor, key: Tensor, value: Tensor, along_h: Tensor, along_w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Widen queries and keys so that their plain product holds the relative position term.

    The query at (i, j) is ``[s q, term of every key row, term of every key column]`` and the key at (k, l) is
    ``[k, one-hot k, one-hot l]``; their product is ``s q . k + row term + column term``. Attention at
    scale 1 over them never makes an ``(h * w) x (h * w)`` tensor. Values are filled up with zeros to the
    same width, which fused kernels demand.

    Args:
        query: ``(B, heads, h * w, C)``, like ``key`` and ``value``.
        key: keys.
        value: values.
        along_h: of :func:`relative_position_terms`.
        along_w: of :func:`relative_position_terms`.

    Returns:
        Queries, keys and values ``(B, heads, h * w, C + h + w)``.
    """
    batch, heads, height, width, _ = along_h.shape
    rows = torch.eye(height, dtype=key.dtype, device=key.device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=key.dtype, device=key.device).repeat(height, 1)
    position = torch.cat([rows, columns], dim=-1).expand(batch, heads, -1, -1)
    terms = torch.cat([along_h, along_w], dim=-1).flatten(2, 3).to(query.dtype)
    wide_query = torch.cat([query * query.shape[-1] ** -0.5, terms], dim=-1)
    wide_value = functional.pad(value, (0, height + width))
    return wide_query, torch.cat([key, position], dim=-1), wide_value
