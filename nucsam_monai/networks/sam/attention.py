"""Self-attention of one encoder block, over windows or over the whole grid."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nucsam_monai.networks.sam.adapter import BlockAdapter
from nucsam_monai.networks.sam.relative_position import (
    fold_relative_positions,
    relative_position_bias,
    relative_position_terms,
)
from nucsam_monai.networks.sam.windows import merge_windows, split_windows


class Attention(nn.Module):
    """Multi-head attention with decomposed relative positions.

    SAM pads the normalised tokens with zeros to whole windows; a padded token's queries, keys and values are
    therefore the bias of the qkv projection, and real tokens do attend to them. Here the projections see
    real tokens only, and the padded cells are filled with that bias: the same numbers for less work.

    The relative positions enter as a mask inside windows. Over the whole grid they are folded into queries
    and keys: a mask that needs a gradient keeps PyTorch from its fused kernels and costs memory for every
    pair.

    Args:
        width: channels of a token.
        heads: attention heads.
        table_side: side in tokens of the grid that the relative position tables are made for.
        window: side of a window in tokens; 0 attends over the whole grid.
    """

    def __init__(self, width: int, heads: int, table_side: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * table_side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * table_side - 1, width // heads))

    def forward(self, tokens: Tensor, adapter: BlockAdapter) -> Tensor:
        """Attend from and to ``(B, h, w, C)`` tokens; the result has the same shape."""
        _, height, width, _ = tokens.shape
        qkv = adapter.qkv(tokens, self.qkv(tokens))
        if not self.window:
            return adapter.windows(self.proj(self._attend(qkv)))
        attended = self._attend(split_windows(qkv, self.window, fill=self.qkv.bias))
        if adapter.acts_in_windows:
            return merge_windows(adapter.windows(self.proj(attended)), (height, width))
        return self.proj(merge_windows(attended, (height, width)))

    def _attend(self, qkv: Tensor) -> Tensor:
        batch, height, width, _ = qkv.shape
        # (B, h, w, 3C) -> 3 x (B, heads, h * w, C / heads)
        query, key, value = (
            qkv.reshape(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        terms = relative_position_terms(query, self.rel_pos_h, self.rel_pos_w, (height, width))
        if self.window:
            bias = relative_position_bias(*terms)
            attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        else:
            wide = fold_relative_positions(query, key, value, *terms)
            attended = functional.scaled_dot_product_attention(*wide, scale=1.0)[..., : value.shape[-1]]
        return attended.transpose(1, 2).reshape(batch, height, width, -1)
