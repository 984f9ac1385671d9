"""The ways of fine-tuning SAM behind one key: what is added to its encoder, and what of it learns."""

from typing import Literal, get_args

from torch import nn

from nucsam_monai.networks.adapters.bottleneck import BottleneckAdapters
from nucsam_monai.networks.adapters.lora import LoRA
from nucsam_monai.networks.adapters.mala import BlockMALA, MALAKernel
from nucsam_monai.networks.sam import SAM, SAMVariant
from nucsam_monai.utils.errors import ConfigurationError

FineTuning = Literal["none", "lora", "msa", "head", "full", "mala"]
"""What learns (SAC, ablation of the adapters; CFR-SAM, comparison of fine-tuning methods):

======== ========== ==================== =====================
key      adapters   of the image encoder the mask decoder
======== ========== ==================== =====================
``none`` no         the neck             learns ("SAM-FT")
``lora`` LoRA       nothing              learns (SAC, SAMed)
``msa``  bottleneck nothing              learns (Med-SA)
``head`` no         nothing              learns
``full`` no         everything           learns
``mala`` MALA       nothing              learns (CFR-SAM)
======== ========== ==================== =====================
"""


def build_adapters(
    kind: FineTuning,
    variant: SAMVariant,
    *,
    rank: int | None = None,
    ratio: float = 0.25,
    scale: float = 0.5,
    init: Literal["zero_last", "torch_default"] = "zero_last",
    kernel: MALAKernel = "learnable",
    dropout: float = 0.1,
) -> nn.ModuleList | None:
    """Build one adapter per encoder block, or none where this way of fine-tuning has none.

    Args:
        kind: the way of fine-tuning.
        variant: the sizes of SAM.
        rank: of ``lora``; a quarter of the encoder's width by default, which SAC's parameter table implies.
            Of ``mala``; 64 by default.
        ratio: of ``msa``, see :class:`BottleneckAdapters`.
        scale: of ``msa``.
        init: of ``msa`` and ``mala``.
        kernel: of ``mala``, see :class:`~nucsam_monai.networks.adapters.mala.MALA`.
        dropout: of ``mala``.

    Raises:
        ConfigurationError: an unknown ``kind`` or a value that the adapter refuses.

    Example:
        >>> from nucsam_monai.networks.sam import sam_variant
        >>> adapters = build_adapters("lora", sam_variant("vit_b"), rank=4)
        >>> len(adapters), sum(parameter.numel() for parameter in adapters.parameters())
        (12, 147456)
    """
    _require_known(kind)
    if kind == "lora":
        rank = max(1, variant.width // 4) if rank is None else rank
        return nn.ModuleList(LoRA(variant.width, rank) for _ in range(variant.depth))
    if kind == "msa":
        return nn.ModuleList(
            BottleneckAdapters(variant.width, ratio, scale, init) for _ in range(variant.depth)
        )
    if kind == "mala":
        rank = 64 if rank is None else rank
        return nn.ModuleList(
            BlockMALA(variant.width, rank, kernel, dropout, init) for _ in range(variant.depth)
        )
    return None


def freeze_for(kind: FineTuning, sam: SAM, *, train_prompt_encoder: bool = False) -> None:
    """Let those parameters of ``sam`` require a gradient that learn in this way of fine-tuning.

    Args:
        kind: the way of fine-tuning; ``full`` trains the prompt encoder as well.
        sam: changed in place; adapters are no part of it and always learn.
        train_prompt_encoder: train the prompt encoder. SAC freezes it by its text, but counts it as trained in
            its parameter table.

    Raises:
        ConfigurationError: an unknown ``kind``.
    """
    _require_known(kind)
    sam.requires_grad_(kind == "full")
    sam.mask_decoder.requires_grad_(True)
    if kind == "none":
        sam.image_encoder.neck.requires_grad_(True)
    if train_prompt_encoder:
        sam.prompt_encoder.requires_grad_(True)


def _require_known(kind: str) -> None:
    if kind not in get_args(FineTuning):
        raise ConfigurationError(f"adapter '{kind}': expected one of {', '.join(get_args(FineTuning))}.")
