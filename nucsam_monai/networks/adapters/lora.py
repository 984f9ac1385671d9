"""Low-rank updates of the queries and values of every block (SAC, LoRA on q and v)."""

import math

import torch
from torch import Tensor, nn

from nucsam_monai.networks.sam import BlockAdapter
from nucsam_monai.utils.errors import ConfigurationError


class LowRank(nn.Sequential):
    """``B A x``: Linear ``width -> rank`` and back, both without bias; zero until it is trained.

    Args:
        width: channels of a token.
        rank: channels between the two projections.

    Raises:
        ConfigurationError: ``rank`` is not a positive number.
    """

    def __init__(self, width: int, rank: int) -> None:
        if rank < 1:
            raise ConfigurationError(f"LoRA rank {rank}: expected a number from 1 on.")
        down, up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
        super().__init__(down, up)


class LoRA(BlockAdapter):
    """LoRA of one block: ``q + B_q A_q x`` and ``v + B_v A_v x``; the keys stay as they are.

    Hu et al., "LoRA", 2021, without their factor alpha / r and without dropout, as in SAC and SAMed.

    Args:
        width: encoder width d.
        rank: rank r of both updates; SAC's parameter table implies d / 4, SAMed takes 4.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.query = LowRank(width, rank)
        self.value = LowRank(width, rank)

    def qkv(self, tokens: Tensor, qkv: Tensor) -> Tensor:
        """Return ``(B, h, w, 3C)`` with both updates added."""
        query, key, value = qkv.chunk(3, dim=-1)
        return torch.cat([query + self.query(tokens), key, value + self.value(tokens)], dim=-1)
