"""From the ragged output of a prompted network to one item per image."""

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.data import decollate_batch
from monai.engines import IterationEvents
from torch.nn import functional as F

from nucsam_monai.engines.batch import PROMPT_KEYS


class DecollateNuclei:
    """Take the place of MONAI's decollation in an evaluator whose batches hold one row per prompt.

    After the model ``engine.state.batch`` and ``engine.state.output`` are lists with one item per image. An
    output's ``pred`` holds the masks ``(n, S, S)`` of the image's n prompts, bool at the size of the ground
    truth in ``label``, which is bool as well. The evaluator itself needs ``decollate: false``.

    Example:
        In a bundle configuration, in front of the handlers that look at items::

            {"_target_": "nucsam_monai.handlers.DecollateNuclei"}
    """

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator with :class:`~nucsam_monai.engines.PrepareNucleusBatch`."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.decollate)

    def decollate(self, engine: Engine) -> None:
        """Replace batch and output by their items."""
        batch: Mapping[str, Any] = engine.state.batch
        counts = batch["prompts_per_image"].tolist()
        logits, truth = engine.state.output["pred"].logits, engine.state.output["label"].masks
        height, width = truth.shape[-2:]
        masks = torch.zeros((0, height, width), dtype=torch.bool, device=truth.device)
        if len(logits):
            logits = F.interpolate(logits.float(), size=(height, width), mode="bilinear", align_corners=False)
            masks = logits[:, 0] > 0
        engine.state.output = [
            {"pred": found, "label": true}
            for found, true in zip(masks.split(counts), truth.bool().split(counts), strict=True)
        ]
        engine.state.batch = decollate_batch(
            {key: value for key, value in batch.items() if key not in PROMPT_KEYS}
        )
