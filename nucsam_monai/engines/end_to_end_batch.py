"""Batches for training points and masks together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor

from nucsam_monai.engines.nucleus_batch import PrepareNucleusBatch, collate_nuclei
from nucsam_monai.losses.prompter import PrompterTarget
from nucsam_monai.losses.promptnucseg import EndToEndTarget

_RAGGED_KEYS = ("centroids", "point_classes")


def collate_end_to_end(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate items as :func:`~nucsam_monai.engines.collate_nuclei` does, and the centroids as lists.

    Args:
        items: what :class:`~nucsam_monai.transforms.NucleusPromptsd` gives, and what
            :class:`~nucsam_monai.transforms.NucleusCentroidsd` does, with its ``points`` under ``centroids``.
    """
    batch = collate_nuclei(
        [{key: value for key, value in item.items() if key not in _RAGGED_KEYS} for item in items]
    )
    return {**batch, **{key: [item[key] for item in items] for key in _RAGGED_KEYS}}


class PrepareEndToEndBatch(PrepareBatch):
    """Hand over a batch of :func:`collate_end_to_end`: image, targets of both networks, and prompts."""

    def __init__(self) -> None:
        self.prepare_masks = PrepareNucleusBatch()

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, EndToEndTarget, tuple[()], dict[str, Any]]:
        """Return ``(image, targets, (), {"prompts": ...})``; what is matched on the CPU stays there.

        Args:
            batchdata: the batch.
            device: of the result.
            non_blocking: as in ``Tensor.to``.
            kwargs: of ``Tensor.to`` for the image.
        """
        image, masks, args, prompts = self.prepare_masks(batchdata, device, non_blocking, **kwargs)
        mask = batchdata["mask"].to(device=device, non_blocking=non_blocking) if "mask" in batchdata else None
        nuclei = PrompterTarget(batchdata["centroids"], batchdata["point_classes"], mask)
        return image, EndToEndTarget(nuclei, masks), args, prompts
