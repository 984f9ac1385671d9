"""Fine-tune SAM: the adapters of its encoder, and which parts of SAM are trained with each."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.sam import SAM, BlockAdapter, SAMVariant
from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)


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


def bottleneck(width: int, ratio: float) -> nn.Sequential:
    """Return Linear ``width -> ratio * width``, GELU, Linear back to ``width``."""
    hidden = max(1, round(ratio * width))
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class BottleneckAdapters(BlockAdapter):
    """The two adapters of one block in the MSA baseline of SAC ("Medical SAM Adapter", Wu et al., 2023).

    One follows the attention inside the residual branch, with a skip of its own; the other lies parallel to
    the MLP: ``y + adapter(y)`` and ``MLP(n) + scale * adapter(n)``.

    Args:
        width: encoder width d.
        ratio: hidden width as a multiple of ``width``.
        scale: factor of the parallel adapter.
        init: ``zero_last`` starts from plain SAM (last layers zero), ``torch_default`` does not.

    Raises:
        ConfigurationError: ``init`` is unknown.
    """

    def __init__(
        self,
        width: int,
        ratio: float = 0.25,
        scale: float = 0.5,
        init: Literal["zero_last", "torch_default"] = "zero_last",
    ) -> None:
        super().__init__()
        if init not in ("zero_last", "torch_default"):
            raise ConfigurationError(f"adapter init '{init}': expected 'zero_last' or 'torch_default'.")
        self.scale = scale
        self.attention = bottleneck(width, ratio)
        self.mlp = bottleneck(width, ratio)
        if init == "zero_last":
            for parameter in (*self.attention[-1].parameters(), *self.mlp[-1].parameters()):
                nn.init.zeros_(parameter)

    def after_attention(self, attended: Tensor) -> Tensor:
        """Return the attention branch ``(B, h, w, C)`` with its adapter added."""
        return attended + self.attention(attended)

    def beside_mlp(self, normed: Tensor) -> Tensor:
        """Return what is added parallel to the MLP; ``normed`` is ``(B, h, w, C)`` after the block's LN2."""
        return self.scale * self.mlp(normed)


MATRIX_CELLS = 2**8
"""Most cells of a map whose kernels are written as one matrix: SAM's windows of 14 x 14, a grid of 16 x 16."""


def nest_kernels(kernels: Sequence[Tensor]) -> Tensor:
    """Add kernels of different sizes at their centres.

    The sum of convolutions of one map is the convolution with the sum of the kernels; so three kernel sizes cost
    one convolution of the largest.

    Args:
        kernels: each ``(B, h, w, k * k)`` in row-major order, k odd.

    Returns:
        ``(B, h, w, K * K)``, K being the largest k.
    """
    largest = max(isqrt(kernel.shape[-1]) for kernel in kernels)
    nested = []
    for kernel in kernels:
        side = isqrt(kernel.shape[-1])
        margin = (largest - side) // 2
        nested.append(F.pad(kernel.unflatten(-1, (side, side)), [margin] * 4).flatten(-2))
    return torch.stack(nested).sum(dim=0)


def convolve_dynamically(cells: Tensor, kernels: Tensor) -> Tensor:
    """Compute for each cell the sum of its K x K neighbourhood, weighted by the cell's kernel.

    All channels share the kernel. Beyond its border a map is mirrored without the border cell repeated. Small
    maps are multiplied by a matrix of cells by cells, a few times as many products as necessary, but in one fast
    operation; in large maps the shifted maps are added up one after another. Unfolding would keep K * K copies
    of the map.

    Args:
        cells: ``(B, h, w, C)``.
        kernels: ``(B, h, w, K * K)`` in row-major order, K odd.

    Returns:
        ``(B, h, w, C)``.

    Raises:
        ConfigurationError: a side of the map is not larger than K // 2, so that mirroring is not possible.

    Example:
        >>> convolve_dynamically(torch.ones(1, 4, 4, 2), torch.ones(1, 4, 4, 9))[0, 0, 0].tolist()
        [9.0, 9.0]
    """
    height, width = cells.shape[1:3]
    reach = isqrt(kernels.shape[-1]) // 2
    if min(height, width) <= reach:
        raise ConfigurationError(
            f"dynamic convolution: found a map of {height} x {width} cells, expected sides of at least "
            f"{reach + 1}, because {reach} cells are mirrored at the border. Take larger images or windows."
        )
    if height * width <= MATRIX_CELLS:
        return _by_matrix(cells, kernels, reach)
    return _by_shifts(cells, kernels, reach)


def _by_matrix(cells: Tensor, kernels: Tensor, reach: int) -> Tensor:
    batch, height, width, channels = cells.shape
    neighbours = _neighbours(height, width, reach, cells.device)
    weights = kernels.flatten(1, 2)
    # Mirrored neighbours coincide with real ones, so weights are added, not written.
    matrix = weights.new_zeros(batch, height * width, height * width)
    matrix = matrix.scatter_add(2, neighbours.expand(batch, -1, -1), weights)
    return (matrix @ cells.flatten(1, 2).to(matrix.dtype)).view(batch, height, width, channels)


def _by_shifts(cells: Tensor, kernels: Tensor, reach: int) -> Tensor:
    height, width = cells.shape[1:3]
    cells = cells.to(torch.promote_types(cells.dtype, kernels.dtype))
    padded = F.pad(cells.permute(0, 3, 1, 2), [reach] * 4, mode="reflect").permute(0, 2, 3, 1).contiguous()
    side = 2 * reach + 1
    total = torch.zeros_like(cells)
    for tap in range(side * side):
        top, left = divmod(tap, side)
        shifted = padded[:, top : top + height, left : left + width]
        total = torch.addcmul(total, shifted, kernels[..., tap : tap + 1])
    return total


@lru_cache(maxsize=16)
def _neighbours(height: int, width: int, reach: int, device: torch.device) -> Tensor:
    """Return ``(h * w, K * K)`` int64: the cells that the taps of each cell's kernel fall on."""
    with torch.inference_mode(False):  # what is kept must also serve training
        offsets = torch.arange(-reach, reach + 1, device=device)
        rows = _mirror(torch.arange(height, device=device)[:, None] + offsets, height)
        columns = _mirror(torch.arange(width, device=device)[:, None] + offsets, width)
        # (h, 1, K, 1) and (1, w, 1, K)
        return (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(2).flatten(0, 1)


def _mirror(index: Tensor, length: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= length, 2 * (length - 1) - index, index)


KERNEL_SIDES = (3, 5, 7)

MALAKernel = Literal["learnable", "static", "none"]
"""Where the kernels come from: predicted for every token, one per channel for all tokens, or no local part."""


@dataclass(frozen=True)
class MALAOptions:
    """Size and start of MALA.

    Attributes:
        kernel: kind of kernel, see :data:`MALAKernel`; ``static`` and ``none`` are the paper's ablation.
        rank: channels r inside; the paper compares 16 to 128.
        dropout: fraction of channels dropped in training.
        init: ``zero_last`` starts from plain SAM (last layer zero), ``torch_default`` does not.

    Raises:
        ConfigurationError: an unknown ``kernel`` or ``init``, or a rank below 1.
    """

    kernel: MALAKernel = "learnable"
    rank: int = 64
    dropout: float = 0.1
    init: Literal["zero_last", "torch_default"] = "zero_last"

    def __post_init__(self) -> None:
        if self.kernel not in get_args(MALAKernel):
            raise ConfigurationError(f"MALA kernel '{self.kernel}': expected one of {get_args(MALAKernel)}.")
        if self.init not in ("zero_last", "torch_default"):
            raise ConfigurationError(f"MALA init '{self.init}': expected 'zero_last' or 'torch_default'.")
        if self.rank < 1:
            raise ConfigurationError(f"MALA rank {self.rank}: expected 1 or more.")


class MALA(nn.Module):
    """One adapter: down to ``rank`` channels, local convolutions, and up again (CFR-SAM, section on MALA).

    With the normalised and scaled tokens ``Z = Linear(gamma * LN(X) + gamma_x * X)`` it computes::

        W_k = softmax(Conv3x3(Z))                           # a k x k kernel for each token, k = 3, 5, 7
        Z'  = (W_3 * Z + W_5 * Z + W_7 * Z) / 3 + Z         # all channels share a token's kernel
        Z'' = Conv1x1(Z') + Z'
        Y   = X + Linear(Dropout(GELU(Z'')))

    Args:
        width: encoder width d.
        options: size and start.

    Example:
        >>> sum(parameter.numel() for parameter in MALA(768, MALAOptions()).parameters())
        154259
    """

    def __init__(self, width: int, options: MALAOptions) -> None:
        super().__init__()
        self.kernel = options.kernel
        rank = options.rank
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))
        self.gamma_x = nn.Parameter(torch.ones(width))
        self.down = nn.Linear(width, rank)
        if self.kernel == "learnable":
            # The layers that predict the three sizes see the same input, so they are one.
            self.predict = nn.Conv2d(rank, sum(side * side for side in KERNEL_SIDES), 3, padding=1)
        elif self.kernel == "static":
            self.depthwise = nn.ModuleList(
                nn.Conv2d(rank, rank, side, padding=side // 2, padding_mode="reflect", groups=rank)
                for side in KERNEL_SIDES
            )
        self.mix = nn.Linear(rank, rank)
        self.dropout = nn.Dropout(options.dropout)
        self.up = nn.Linear(rank, width)
        if options.init == "zero_last":
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
        options: options of both.
    """

    def __init__(self, width: int, options: MALAOptions) -> None:
        super().__init__()
        self.attention = MALA(width, options)
        self.block = MALA(width, options)

    def windows(self, attended: Tensor) -> Tensor:
        """Adapt the attention's output ``(B * windows, side, side, d)``."""
        return self.attention(attended)

    def after_block(self, tokens: Tensor) -> Tensor:
        """Adapt the output ``(B, h, w, d)`` of the block."""
        return self.block(tokens)


FineTuning = Literal["none", "lora", "msa", "head", "full", "mala", "samus"]
"""Parts of SAM that are trained (SAC, ablation of the adapters; CFR-SAM, comparison of fine-tuning methods).

The mask decoder is always trained.

| key | adapters | trained in the image encoder | used by |
|---|---|---|---|
| ``none`` | none | neck | SAM-FT |
| ``lora`` | LoRA | adapters | SAC, SAMed |
| ``msa`` | bottleneck | adapters | Med-SA |
| ``head`` | none | nothing | SAMMI |
| ``full`` | none | everything | |
| ``mala`` | MALA | adapters | CFR-SAM |
| ``samus`` | adapters and a CNN | adapters | SAMUS |

The adapters of ``samus`` surround the whole encoder, see :mod:`~nucsam_monai.networks.samus`; only SAC has them.
"""


@dataclass(frozen=True)
class LoRAOptions:
    """LoRA: ``d/4`` is a quarter of the encoder's width, as SAC's parameter table implies; SAMed takes 4."""

    rank: int | Literal["d/4"] = "d/4"


@dataclass(frozen=True)
class MSAOptions:
    """Bottleneck adapters of Med-SA: hidden width, factor of the parallel adapter, and start."""

    ratio: float = 0.25
    scale: float = 0.5
    init: Literal["zero_last", "torch_default"] = "zero_last"


def build_adapters(
    kind: FineTuning,
    variant: SAMVariant,
    options: LoRAOptions | MSAOptions | MALAOptions | None = None,
) -> nn.ModuleList | None:
    """Build one adapter per encoder block, or none if this kind of fine-tuning has none.

    Args:
        kind: the kind of fine-tuning.
        variant: the sizes of SAM.
        options: options of this kind of adapter; None takes its defaults.

    Raises:
        ConfigurationError: an unknown ``kind`` or a value that the adapter refuses.

    Example:
        >>> from nucsam_monai.networks.sam import sam_variant
        >>> adapters = build_adapters("lora", sam_variant("vit_b"), LoRAOptions(rank=4))
        >>> len(adapters), sum(parameter.numel() for parameter in adapters.parameters())
        (12, 147456)
    """
    _require_known(kind)
    depth = range(variant.depth)
    if kind == "lora":
        lora = options if isinstance(options, LoRAOptions) else LoRAOptions()
        rank = max(1, variant.width // 4) if lora.rank == "d/4" else lora.rank
        return nn.ModuleList(LoRA(variant.width, rank) for _ in depth)
    if kind == "msa":
        msa = options if isinstance(options, MSAOptions) else MSAOptions()
        return nn.ModuleList(BottleneckAdapters(variant.width, msa.ratio, msa.scale, msa.init) for _ in depth)
    if kind == "samus":
        raise ConfigurationError(
            "adapter 'samus': found a network that adapts SAM's blocks alone, expected SAC (bundle sac)."
        )
    if kind == "mala":
        mala = options if isinstance(options, MALAOptions) else MALAOptions()
        return nn.ModuleList(BlockMALA(variant.width, mala) for _ in depth)
    return None


def freeze_for(
    kind: FineTuning, sam: SAM, *, train_prompt_encoder: bool = False, pretrained: bool = True
) -> None:
    """Set ``requires_grad`` of SAM's parameters for this kind of fine-tuning.

    Args:
        kind: the kind of fine-tuning; ``full`` trains the prompt encoder as well.
        sam: changed in place; adapters are not part of it and always train.
        train_prompt_encoder: train the prompt encoder. SAC freezes it by its text, but counts it as trained in
            its parameter table.
        pretrained: whether ``sam`` has trained weights; a random encoder that stays frozen is warned of.

    Raises:
        ConfigurationError: ``kind`` is unknown.
    """
    _require_known(kind)
    sam.requires_grad_(kind == "full")
    sam.mask_decoder.requires_grad_(True)
    if kind == "none":
        sam.image_encoder.neck.requires_grad_(True)
    if train_prompt_encoder:
        sam.prompt_encoder.requires_grad_(True)
    if not pretrained and kind != "full":
        warn_of_frozen_encoder(f"adapter '{kind}'", "train everything with adapter 'full'")


def warn_of_frozen_encoder(option: str, remedy: str) -> None:
    """Warn of a randomly initialised encoder that is frozen.

    Args:
        option: the option that freezes it, with its value.
        remedy: the alternative to giving weights.
    """
    logger.warning(
        "no SAM weights: with %s the encoder is randomly initialised and frozen, so the model cannot learn. "
        "Give sam_checkpoint, or %s.",
        option,
        remedy,
    )


def _require_known(kind: str) -> None:
    if kind not in get_args(FineTuning):
        raise ConfigurationError(f"adapter '{kind}': expected one of {', '.join(get_args(FineTuning))}.")
