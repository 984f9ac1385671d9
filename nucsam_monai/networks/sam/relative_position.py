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
    return resized.permute(0, 2, 3, 1).contiguous()


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


def relative_position_terms(query: Tensor, positions_h: Tensor, positions_w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two parts of the decomposed relative position term of the attention logits.

    "MViTv2" (Li et al., 2022), Eq. 4: ``q . R_h[i - k] + q . R_w[j - l]`` for a query at (i, j) and a key at
    (k, l). The query is the unscaled one.

    Args:
        query: ``(..., h, w, C)``.
        positions_h: of :func:`relative_positions`, ``(rows, rows, C)`` with at least ``h`` rows.
        positions_w: ``(columns, columns, C)`` with at least ``w`` columns.

    Returns:
        ``(..., h, w, rows)`` and ``(..., h, w, columns)``: the term of each row and each column of keys.
    """
    height, width = query.shape[-3:-1]
    along_h = torch.einsum("...ijc,ikc->...ijk", query, positions_h[:height])
    along_w = torch.einsum("...ijc,jlc->...ijl", query, positions_w[:width])
    return along_h, along_w


def padding_term(along_h: Tensor, along_w: Tensor) -> Tensor:
    """Merge the position terms of all padded cells of a window into that of one key.

    Padded cells have the same key and value, so that in the softmax they act as one key whose position
    term is the logarithm of the sum of the exponentials of theirs: that sum falls into a product per block
    of rows and columns, and no padded cell is looked at.

    Args:
        along_h: of :func:`relative_position_terms`, ``(..., h, w, rows)``, of the ``h`` x ``w`` real tokens.
        along_w: ``(..., h, w, columns)``; ``rows`` x ``columns`` is the whole window.

    Returns:
        ``(..., h, w, 1)``.
    """
    height, width = along_h.shape[-3:-1]
    along_h, along_w = along_h.float(), along_w.float()
    beside = along_h.logsumexp(-1, keepdim=True) + along_w[..., width:]
    below = along_w[..., :width].logsumexp(-1, keepdim=True) + along_h[..., height:]
    return torch.cat([beside, below], dim=-1).logsumexp(-1, keepdim=True)
