"""Batches of images with different numbers of prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import list_data_collate
from monai.engines import PrepareBatch
from torch import Tensor

from nucsam_monai.losses.promptnucseg import NucleusTargets
from nucsam_monai.networks.nucleus_prompts import NucleusPrompts
from nucsam_monai.networks.sam.prompt_encoder import BOX_LABELS

RAGGED_KEYS = ("points", "point_labels", "masks", "class_ids")
"""Keys of an item with one row per prompt, as :class:`~nucsam_monai.transforms.NucleusPromptsd` gives them."""


def collate_nuclei(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate items with prompts: one row per prompt is concatenated, all else stacked as MONAI does.

    Args:
        items: of one batch, with ``points``; each may have another number of prompts, or none.

    Returns:
        The batch with ``prompts_per_image`` ``(B,)`` int64 added.

    Example:
        >>> items = [{"points": torch.zeros(n, 1, 2), "id": str(n)} for n in (2, 0)]
        >>> batch = collate_nuclei(items)
        >>> batch["points"].shape, batch["prompts_per_image"], batch["id"]
        (torch.Size([2, 1, 2]), tensor([2, 0]), ['2', '0'])
    """
    ragged = {key: torch.cat([item[key] for item in items]) for key in RAGGED_KEYS if key in items[0]}
    others = [{key: value for key, value in item.items() if key not in RAGGED_KEYS} for item in items]
    counts = torch.tensor([len(item["points"]) for item in items])
    return {**list_data_collate(others), **ragged, "prompts_per_image": counts}


class PrepareNucleusBatch(PrepareBatch):
    """Hand over a batch of :func:`collate_nuclei`: image, what is known of its nuclei, and prompts."""

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, NucleusTargets, tuple[()], dict[str, Any]]:
        """Return ``(image, masks, (), {"prompts": ...})`` on ``device``; the numbers of prompts stay on the CPU.

        Args:
            batchdata: the batch.
            device: of the result.
            non_blocking: as in ``Tensor.to``.
            kwargs: of ``Tensor.to`` for the image.
        """

        def on_device(key: str) -> Tensor:
            return batchdata[key].to(device=device, non_blocking=non_blocking)

        image = batchdata["image"].to(device=device, non_blocking=non_blocking, **kwargs)
        classes, dense = (on_device(key) if key in batchdata else None for key in ("class_ids", "dense"))
        prompts = NucleusPrompts(
            on_device("points"),
            on_device("point_labels"),
            batchdata["prompts_per_image"],
            has_boxes=bool((batchdata["point_labels"] == BOX_LABELS[0]).any()),
        )
        return image, NucleusTargets(on_device("masks"), classes, dense), (), {"prompts": prompts}
