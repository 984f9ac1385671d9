"""Self-attention of one encoder block, over windows or over the whole grid."""

import torch
from torch import Tensor, nn

from nucsam_monai.networks.sam.adapter import BlockAdapter
from nucsam_monai.networks.sam.folded_attention import folded_attention
from nucsam_monai.networks.sam.frozen_cache import FrozenCache
from nucsam_monai.networks.sam.packed_linear import PackedLinear
from nucsam_monai.networks.sam.relative_position import relative_positions
from nucsam_monai.networks.sam.windows import merge_windows, pad_to_windows, split_windows, window_spans


class Attention(nn.Module):
    """Multi-head attention with decomposed relative positions.

    SAM pads the normalised tokens with zeros to whole windows; a padded token's queries, keys and values are
    therefore the bias of the qkv projection, and real tokens do attend to them. Here the projections see
    real tokens only, and so does the attention on a CPU: the padded cells of a window act as one key. The
    same numbers for less work. An accelerator is kept waiting by many small kernels rather than by padded
    cells, so there all windows are filled up with the bias and attended to at once.

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
        self.qkv = PackedLinear(width, 3 * width)
        self.proj = PackedLinear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * table_side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * table_side - 1, width // heads))
        self._positions_h = FrozenCache(relative_positions)
        self._positions_w = FrozenCache(relative_positions)

    def forward(self, tokens: Tensor, adapter: BlockAdapter) -> Tensor:
        """Attend from and to ``(B, h, w, C)`` tokens; the result has the same shape."""
        qkv = adapter.qkv(tokens, self.qkv(tokens))
        if not self.window:
            return adapter.windows(self.proj(self._attend(qkv)))
        if adapter.acts_in_windows:
            projected = self.proj(self._attend_whole_windows(qkv))
            changed = adapter.windows(projected.flatten(0, 2)).view_as(projected)
            return _crop(merge_windows(changed), like=tokens)
        if qkv.is_cpu:
            return self.proj(self._attend_real_tokens(qkv))
        return self.proj(_crop(merge_windows(self._attend_whole_windows(qkv)), like=tokens))

    def _attend_whole_windows(self, qkv: Tensor) -> Tensor:
        """Attend also from the padded cells; ``(B, rows, columns, window, window, C)``."""
        padded = pad_to_windows(qkv, self.window, fill=self.qkv.bias)
        return self._attend(split_windows(padded, self.window, self.window))

    def _attend_real_tokens(self, qkv: Tensor) -> Tensor:
        """Attend in the regions of equally cut windows one after another; ``(B, h, w, C)``."""
        _, height, width, _ = qkv.shape
        bands = []
        for top, bottom, rows in window_spans(height, self.window):
            regions = []
            for left, right, columns in window_spans(width, self.window):
                windows = split_windows(qkv[:, top:bottom, left:right], rows, columns)
                regions.append(merge_windows(self._attend(windows)))
            bands.append(torch.cat(regions, dim=2))
        return torch.cat(bands, dim=1)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attend among the ``(..., h, w, 3C)`` tokens of each window, which the border may have cut."""
        height, width = qkv.shape[-3:-1]
        rows, columns = (self.window, self.window) if self.window else (height, width)
        return folded_attention(
            qkv,
            self.heads,
            self._positions_h(self.rel_pos_h, rows),
            self._positions_w(self.rel_pos_w, columns),
            padding=self.qkv.bias if height < rows or width < columns else None,
        )


def _crop(grid: Tensor, like: Tensor) -> Tensor:
    return grid[:, : like.shape[1], : like.shape[2]]
