"""Batches for whole-image inference with one point per nucleus."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor

from nucsam_monai.inferers import DetectedPoints, FindPoints, PointFinder, TilePointFinder, TilePrompter
from nucsam_monai.utils.errors import ConfigurationError


class PreparePromptsBatch(PrepareBatch):
    """Hand over one image and its prompts, in the order that :class:`~nucsam_monai.inferers.PromptedInferer` takes.

    Prompts are found by the prompter, or are the ``points`` ``(1, K, 2)`` of the batch. Those have classes of
    their own under ``point_classes`` ``(1, K)``, and sizes under ``point_sizes`` ``(1, K, 2)`` where they stand for
    boxes, or get the prompter's.

    Args:
        finder: finds and classifies points.
        given_points: take points from batches that have them: those of the ground truth (the ablation with
            oracle prompts), or of a user.
    """

    def __init__(self, finder: PointFinder | TilePointFinder, *, given_points: bool = False) -> None:
        self.finder = finder
        self.given_points = given_points

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, None, tuple[DetectedPoints | FindPoints | TilePrompter], dict[str, Any]]:
        """Return ``(image, None, (prompts,), {})`` with the image on ``device``.

        Raises:
            ConfigurationError: a given point is marked as background.
        """
        image = batchdata["image"].to(device=device, non_blocking=non_blocking, **kwargs)
        given = self.given_points and "points" in batchdata
        return image, None, (self._given(batchdata) if given else self.finder,), {}

    def _given(self, batch: Mapping[str, Any]) -> DetectedPoints | FindPoints:
        points = batch["points"][0]
        if "point_labels" in batch and (batch["point_labels"] != 1).any():
            raise ConfigurationError(
                f"points of '{batch['id'][0]}': found some with label 0 (background), expected one point on each "
                "nucleus. Remove them."
            )
        if "point_classes" not in batch:
            return partial(self.finder.classify, points=points)
        sizes = batch["point_sizes"][0] if "point_sizes" in batch else None
        return DetectedPoints(points, torch.ones(len(points)), batch["point_classes"][0], sizes)
