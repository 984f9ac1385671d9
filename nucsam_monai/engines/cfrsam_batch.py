"""Batches for CFR-SAM's second stage."""

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor

from nucsam_monai.engines.nucleus_batch import PrepareNucleusBatch
from nucsam_monai.losses.cfrsam import CFRSAMTarget


class PrepareCFRSAMBatch(PrepareBatch):
    """Hand over a batch of :func:`~nucsam_monai.engines.collate_nuclei`: image, ground truth and prompts.

    The mask of all nuclei, under ``foreground`` ``(B, 1, S, S)``, is part of the ground truth where the batch has it.
    """

    def __init__(self) -> None:
        self.prompts = PrepareNucleusBatch()

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, CFRSAMTarget, tuple[()], dict[str, Any]]:
        """Return ``(image, target, (), {"prompts": ...})`` on ``device``; see :class:`PrepareNucleusBatch`."""
        image, nuclei, _, named = self.prompts(batchdata, device, non_blocking, **kwargs)
        foreground = None
        if "foreground" in batchdata:
            foreground = batchdata["foreground"][:, 0].to(device=device, non_blocking=non_blocking)
        return image, CFRSAMTarget(nuclei.masks, foreground, named["prompts"].prompts_per_image), (), named
