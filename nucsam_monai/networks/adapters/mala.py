"""Multi-scale adaptive local-aware adapter: every token looks at its neighbours in three sizes (CFR-SAM)."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.adapters.dynamic_convolution import convolve_dynamically, nest_kernels
from nucsam_monai.networks.sam import BlockAdapter
from nucsam_monai.utils.errors import ConfigurationError

KERNEL_SIDES = (3, 5, 7)

MALAKernel = Literal["learnable", "static", "none"]
"""Where the kernels come from: predicted for every token, one per channel for all tokens, or no local part."""


class MALA(nn.Module):
    """One adapter: down to ``rank`` channels, local convolutions, and up again (CFR-SAM, section on MALA).

    With the normalised and scaled tokens ``Z = Linear(gamma * LN(X) + gamma_x * X)`` it computes::

        W_k = softmax(Conv3x3(Z))                           # a k x k kernel for each token, k = 3, 5, 7
        Z'  = (W_3 * Z + W_5 * Z + W_7 * Z) / 3 + Z         # all channels share a token's kernel
        Z'' = Conv1x1(Z') + Z'
        Y   = X + Linear(Dropout(GELU(Z'')))

    Args:
        width: encoder width d.
        rank: channels r inside.
        kernel: see :data:`MALAKernel`; ``static`` and ``none`` are the paper's ablation.
        dropout: share of channels dropped in training.
        init: ``zero_last`` starts from plain SAM (last layer zero), ``torch_default`` does not.

    Raises:
        ConfigurationError: an unknown ``kernel`` or ``init``, or a rank below 1.

    Example:
        >>> sum(parameter.numel() for parameter in MALA(768).parameters())
        154259
    """

    def __init__(
        self,
        width: int,
        rank: int = 64,
        kernel: MALAKernel = "learnable",
        dropout: float = 0.1,
        init: Literal["zero_last", "torch_default"] = "zero_last",
    ) -> None:
        super().__init__()
        if kernel not in get_args(MALAKernel):
            raise ConfigurationError(f"MALA kernel '{kernel}': expected one of {get_args(MALAKernel)}.")
        if init not in ("zero_last", "torch_default"):
            raise ConfigurationError(f"MALA init '{init}': expected 'zero_last' or 'torch_default'.")
        if rank < 1:
            raise ConfigurationError(f"MALA rank {rank}: expected a number from 1 on.")
        self.kernel = kernel
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))
        self.gamma_x = nn.Parameter(torch.ones(width))
        self.down = nn.Linear(width, rank)
        if kernel == "learnable":
            # The layers that predict the three sizes see the same input, so they are one.
            self.predict = nn.Conv2d(rank, sum(side * side for side in KERNEL_SIDES), 3, padding=1)
        elif kernel == "static":
            self.depthwise = nn.ModuleList(
                nn.Conv2d(rank, rank, side, padding=side // 2, padding_mode="reflect", groups=rank)
                for side in KERNEL_SIDES
            )
        self.mix = nn.Linear(rank, rank)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(rank, width)
        if init == "zero_last":
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Adapt ``(B, h, w, d)`` tokens; the result has the same shape.

        Raises:
            ConfigurationError: a side has less than four tokens, too few to be mirrored for the 7 x 7 kernels.
        """
        inner = self.down(self.gamma * self.norm(tokens) + self.gamma_x * tokens)
        inner = inner + self._local(inner)
        inner = inner + self.mix(inner)
        return tokens + self.up(self.dropout(F.gelu(inner)))

    def _local(self, inner: Tensor) -> Tensor | float:
        """Return the mean of the three convolutions, ``(B, h, w, r)``."""
        if self.kernel == "none":
            return 0.0
        maps = inner.permute(0, 3, 1, 2)
        if self.kernel == "static":
            summed = torch.stack([conv(maps) for conv in self.depthwise]).sum(dim=0)
            return summed.permute(0, 2, 3, 1) / len(KERNEL_SIDES)
        logits = self.predict(maps).permute(0, 2, 3, 1).split([side * side for side in KERNEL_SIDES], dim=-1)
        kernels = nest_kernels([sized.softmax(dim=-1) for sized in logits])
        return convolve_dynamically(inner, kernels / len(KERNEL_SIDES)).to(inner.dtype)


class BlockMALA(BlockAdapter):
    """The two adapters of one block: after the attention, still in its windows, and after the whole block.

    The padded cells of a window take part like real ones.

    Args:
        width: encoder width d.
        rank: see :class:`MALA`.
        kernel: see :class:`MALA`.
        dropout: see :class:`MALA`.
        init: see :class:`MALA`.
    """

    def __init__(
        self,
        width: int,
        rank: int = 64,
        kernel: MALAKernel = "learnable",
        dropout: float = 0.1,
        init: Literal["zero_last", "torch_default"] = "zero_last",
    ) -> None:
        super().__init__()
        self.attention = MALA(width, rank, kernel, dropout, init)
        self.block = MALA(width, rank, kernel, dropout, init)

    def windows(self, attended: Tensor) -> Tensor:
        """Adapt the attention's output ``(B * windows, side, side, d)``."""
        return self.attention(attended)

    def after_block(self, tokens: Tensor) -> Tensor:
        """Adapt the output ``(B, h, w, d)`` of the block."""
        return self.block(tokens)
