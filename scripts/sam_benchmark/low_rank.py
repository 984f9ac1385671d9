"""Low-rank updates of queries and values, the same arithmetic for every implementation (LoRA, Hu et al., 2022)."""

import torch
from torch import Tensor, nn

from nucsam_monai.networks.sam import BlockAdapter

RANK = 4


class LowRankUpdate(nn.Module):
    """``q + B_q A_q x`` and ``v + B_v A_v x``; the keys stay.

    Both factors are drawn at random, because with ``B = 0``, as training starts, half of the gradients vanish and
    nothing would be compared.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down_q, self.down_v = (nn.Linear(width, RANK, bias=False) for _ in range(2))
        self.up_q, self.up_v = (nn.Linear(RANK, width, bias=False) for _ in range(2))

    def forward(self, tokens: Tensor, qkv: Tensor) -> Tensor:
        """Update ``(..., 3C)`` queries, keys and values of ``(..., C)`` tokens."""
        query, key, value = qkv.chunk(3, dim=-1)
        query = query + self.up_q(self.down_q(tokens))
        value = value + self.up_v(self.down_v(tokens))
        return torch.cat([query, key, value], dim=-1)


class LowRankAdapter(BlockAdapter):
    """The update as a hook of our encoder."""

    def __init__(self, update: LowRankUpdate) -> None:
        super().__init__()
        self.update = update

    def qkv(self, tokens: Tensor, qkv: Tensor) -> Tensor:
        """Update the queries, keys and values of the real tokens."""
        return self.update(tokens, qkv)


class LowRankLinear(nn.Module):
    """The update around the qkv projection of an encoder without hooks."""

    def __init__(self, linear: nn.Linear, update: LowRankUpdate) -> None:
        super().__init__()
        self.linear = linear
        self.update = update

    def forward(self, tokens: Tensor) -> Tensor:
        """Project and update; padded tokens are zeros, for which the update is zero."""
        return self.update(tokens, self.linear(tokens))


def draw_updates(depth: int, width: int, seed: int) -> nn.ModuleList:
    """Return one update per block, the same ones for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleList(LowRankUpdate(width) for _ in range(depth))
