"""From a collated batch to what MONAI's engines hand to the network."""

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor

from nucsam_monai.utils.errors import ConfigurationError


class PrepareDomainBatch(PrepareBatch):
    """Hand over image and label, the batch's domain, and points where the batch has them.

    Batches hold the keys ``image``, ``label`` (absent at inference), ``domain`` and, for the ablation that
    prompts by hand, ``points`` and ``point_labels``.
    """

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, tuple[()], dict[str, Any]]:
        """Return ``(image, label, (), {"domain": ..., "points": ...})`` on ``device``.

        Raises:
            ConfigurationError: the batch mixes domains.
        """

        def on_device(key: str) -> Tensor:
            return batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs)

        arguments: dict[str, Any] = {}
        if "domain" in batchdata:
            domains = set(batchdata["domain"])
            if len(domains) > 1:
                raise ConfigurationError(f"batch: expected images of one domain, found {sorted(domains)}.")
            arguments["domain"] = domains.pop()
        if "points" in batchdata:
            arguments["points"] = (on_device("points"), on_device("point_labels"))
        label = on_device("label") if "label" in batchdata else None
        return on_device("image"), label, (), arguments
