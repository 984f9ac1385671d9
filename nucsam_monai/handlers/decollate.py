"""Split batches and outputs of point detectors and prompted networks into one item per image."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.data import decollate_batch
from monai.engines import IterationEvents
from torch.nn import functional as F

from nucsam_monai.engines.batch import POINT_KEYS, PROMPT_KEYS
from nucsam_monai.inferers import select_points


class _Decollation(ABC):
    """Replace MONAI's decollation in an evaluator, which itself needs ``decollate: false``.

    After the model ``engine.state.batch`` and ``engine.state.output`` are lists with one item per image.
    """

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.decollate)

    @abstractmethod
    def decollate(self, engine: Engine) -> None:
        """Replace batch and output by their items."""


class DecollatePoints(_Decollation):
    """Decollate the batches of one image of a nuclei prompter, see :class:`~nucsam_monai.engines.PreparePrompterBatch`.

    The output's ``pred`` holds the selected points ``(n, 4)`` as x, y, class id and score, its ``label`` the true
    ones ``(G, 3)`` as x, y and class id, both float64.

    Args:
        mask_filter: drop points where the auxiliary mask sees no nucleus.
        radius_px: largest distance of points that are taken for the same nucleus.
    """

    def __init__(self, *, mask_filter: bool = False, radius_px: float = 12.0) -> None:
        self.mask_filter = mask_filter
        self.radius_px = radius_px

    def decollate(self, engine: Engine) -> None:
        """Replace batch and output by their items."""
        output = engine.state.output
        height, width = output["image"].shape[-2:]
        found = select_points(
            output["pred"], (height, width), mask_filter=self.mask_filter, radius=self.radius_px
        )
        parts = [torch.as_tensor(part).double() for part in (found.points, found.class_ids, found.scores)]
        truth = output["label"]
        true = torch.cat([truth.points[0].double(), truth.classes[0].double()[:, None]], dim=1)
        engine.state.output = [
            {"pred": torch.cat([parts[0], torch.stack(parts[1:], dim=1)], dim=1), "label": true}
        ]
        engine.state.batch = decollate_batch(
            {key: value for key, value in engine.state.batch.items() if key not in POINT_KEYS}
        )


class DecollatePrediction(_Decollation):
    """Decollate batches of one image whose inferer returns a ``NucleiPrediction``, the output's ``pred``."""

    def decollate(self, engine: Engine) -> None:
        """Replace batch and output by their items."""
        engine.state.output = [{"pred": engine.state.output["pred"]}]
        engine.state.batch = decollate_batch(engine.state.batch)


class DecollateNuclei(_Decollation):
    """Decollate batches with one row per prompt, see :class:`~nucsam_monai.engines.PrepareNucleusBatch`.

    An output's ``pred`` holds the masks ``(n, S, S)`` of the image's n prompts, bool at the size of the ground
    truth in ``label``, which is bool as well.

    Example:
        In a bundle configuration, in front of the handlers that look at items::

            {"_target_": "nucsam_monai.handlers.DecollateNuclei"}
    """

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
