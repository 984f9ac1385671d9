"""Hierarchical modulated fusion of four encoder levels into one embedding (CFR-SAM, section on HMFM)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

LEVELS = 4


@dataclass(frozen=True)
class HMFMOptions:
    """How the levels are fused; all but ``modulated`` are the paper's ablation, ``none`` takes the last level.

    ``reduce`` says what becomes of the modulated levels. Their sum, as in the paper, is about four times as
    large as the embedding that SAM's decoder was trained on, and the decoder has to get used to it.
    """

    fusion: Literal["modulated", "add", "average", "concat", "none"] = "modulated"
    reduce: Literal["sum", "mean"] = "sum"


class HMFM(nn.Module):
    """Weight the channels of each level by what the level shows, and add the levels up.

    ``a_l = sigmoid(GAP(ReLU(BN(Conv1x1(F_l)))))`` and ``F = sum_l (a_l * F_l + F_l)``.

    Args:
        channels: of an embedding.
        options: see :class:`HMFMOptions`; not for ``none``, which has no module.

    Example:
        >>> sum(parameter.numel() for parameter in HMFM(256, HMFMOptions()).parameters())
        264192
    """

    def __init__(self, channels: int, options: HMFMOptions) -> None:
        super().__init__()
        self.options = options
        if options.fusion == "modulated":
            self.gates = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(channels, channels, kernel_size=1, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                    nn.AdaptiveAvgPool2d(1),
                    nn.Sigmoid(),
                )
                for _ in range(LEVELS)
            )
        elif options.fusion == "concat":
            self.project = nn.Conv2d(LEVELS * channels, channels, kernel_size=1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Fuse four maps ``(B, C, h, w)`` into one of the same shape."""
        if self.options.fusion == "concat":
            return self.project(torch.cat(list(levels), dim=1))
        if self.options.fusion == "modulated":
            pairs = zip(self.gates, levels, strict=True)
            levels = [level * (1 + gate(level)) for gate, level in pairs]
        stacked = torch.stack(list(levels))
        averages = self.options.fusion == "average" or (
            self.options.fusion == "modulated" and self.options.reduce == "mean"
        )
        return stacked.mean(dim=0) if averages else stacked.sum(dim=0)
