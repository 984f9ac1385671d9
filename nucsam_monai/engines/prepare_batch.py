"""From a collated batch to what MONAI's engines hand to the network."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor

from nucsam_monai.utils.errors import ConfigurationError

PreparedBatch = tuple[Tensor, Tensor | None, tuple[()], dict[str, Any]]


class PreparePointsBatch(PrepareBatch):
    """Hand over image and label, and points where the batch has them.

    Batches hold the keys ``image``, ``label`` (absent at inference) and, where the network is prompted by hand,
    ``points`` and ``point_labels``.
    """

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> PreparedBatch:
        """Return ``(image, label, (), {"points": (coordinates, labels)})`` on ``device``."""

        def on_device(key: str) -> Tensor:
            return batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs)

        label = on_device("label") if "label" in batchdata else None
        return on_device("image"), label, (), self.arguments(batchdata, on_device)

    def arguments(self, batch: Mapping[str, Any], on_device: Callable[[str], Tensor]) -> dict[str, Any]:
        """Return the network's named arguments.

        Args:
            batch: the collated batch.
            on_device: returns the tensor under a key of the batch, moved and cast.
        """
        if "points" not in batch:
            return {}
        return {"points": (on_device("points"), on_device("point_labels"))}


class PrepareDomainBatch(PreparePointsBatch):
    """Hand over the batch's domain as well, under the key ``domain``, where the batch has one."""

    def arguments(self, batch: Mapping[str, Any], on_device: Callable[[str], Tensor]) -> dict[str, Any]:
        """Return ``domain`` and ``points``.

        Raises:
            ConfigurationError: the batch mixes domains.
        """
        named = super().arguments(batch, on_device)
        if "domain" in batch:
            domains = set(batch["domain"])
            if len(domains) > 1:
                raise ConfigurationError(f"batch: expected images of one domain, found {sorted(domains)}.")
            named["domain"] = domains.pop()
        return named


class PrepareTruthBatch(PreparePointsBatch):
    """Hand over the label's first channel as the network's argument ``truth`` as well: for training alone.

    A network whose own prompts are poor at first can take them from there in a warm-up (SAC, generator).
    """

    def arguments(self, batch: Mapping[str, Any], on_device: Callable[[str], Tensor]) -> dict[str, Any]:
        """Return ``truth`` and ``points``."""
        return {**super().arguments(batch, on_device), "truth": on_device("label")[:, :1]}
