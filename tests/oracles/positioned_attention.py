"""Attention in one padded window, query by query, from the formula of "MViTv2" (Li et al., 2022), Eq. 4."""

import torch
from torch import Tensor


def attend_in_padded_window(
    qkv: Tensor, heads: int, table_h: Tensor, table_w: Tensor, padding: Tensor
) -> Tensor:
    """Fill ``(h, w, 3 * heads * C)`` up with ``padding`` to the side of the tables, attend, and crop."""
    height, width, _ = qkv.shape
    rows, columns = (len(table_h) + 1) // 2, (len(table_w) + 1) // 2
    window = padding.repeat(rows, columns, 1)
    window[:height, :width] = qkv
    query, key, value = window.unflatten(-1, (3, heads, -1)).unbind(-3)  # each (rows, columns, heads, C)
    attended = torch.zeros(height, width, *query.shape[2:])
    for i in range(height):
        for j in range(width):
            for head in range(heads):
                q = query[i, j, head]
                logits = torch.zeros(rows, columns)
                for k in range(rows):
                    for m in range(columns):
                        position = table_h[i - k + rows - 1] + table_w[j - m + columns - 1]
                        logits[k, m] = q @ key[k, m, head] * len(q) ** -0.5 + q @ position
                weight = logits.flatten().softmax(0).reshape(rows, columns, 1)
                attended[i, j, head] = (weight * value[:, :, head]).sum((0, 1))
    return attended.flatten(2)
