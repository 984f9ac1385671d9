"""Batches of images with any number of nuclei each."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import list_data_collate
from monai.engines import PrepareBatch
from torch import Tensor

from nucsam_monai.losses.prompter import PrompterTarget

RAGGED_KEYS = ("points", "point_classes", "point_sizes", "classes")
"""Keys of an item with one entry per nucleus."""


def collate_points(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate items as MONAI does, but leave what has another length in each image as a list.

    Args:
        items: dictionaries with equal keys; those of :data:`RAGGED_KEYS` become lists.

    Example:
        >>> items = [{"image": torch.zeros(3, 8, 8), "points": torch.zeros(n, 2)} for n in (1, 4)]
        >>> [len(points) for points in collate_points(items)["points"]]
        [1, 4]
    """
    batch: dict[str, Any] = list_data_collate(
        [{key: value for key, value in item.items() if key not in RAGGED_KEYS} for item in items]
    )
    ragged = [key for key in RAGGED_KEYS if key in items[0]]
    return {**batch, **{key: [item[key] for item in items] for key in ragged}}


class PreparePrompterBatch(PrepareBatch):
    """Hand over images, and where the batch has them the nuclei as a :class:`PrompterTarget`.

    Batches come from :func:`collate_points` and hold ``image`` and, in training, ``points``,
    ``point_classes``, ``mask`` and perhaps ``point_sizes``.
    """

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, PrompterTarget | None]:
        """Return ``(image, target)``.

        The images go to ``device``, with ``kwargs`` for :meth:`torch.Tensor.to`, and the mask with them. Points
        and classes stay where they are: they are matched on the CPU.
        """

        def on_device(key: str) -> Tensor:
            return batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs)

        target = None
        if "points" in batchdata:
            mask = on_device("mask") if "mask" in batchdata else None
            target = PrompterTarget(
                batchdata["points"], batchdata["point_classes"], mask, batchdata.get("point_sizes")
            )
        return on_device("image"), target
