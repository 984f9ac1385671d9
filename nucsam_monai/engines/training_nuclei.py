"""Find nuclei with the first stage in the images that the second stage trains on."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from monai.networks.utils import eval_mode
from numpy.typing import NDArray

from nucsam_monai.inferers import DetectedPoints, PointFinder, autocast
from nucsam_monai.transforms.prompts import FoundNuclei
from nucsam_monai.utils.names import counted

logger = logging.getLogger(__name__)


class FoundInTraining(Mapping[str, FoundNuclei]):
    """Hold nuclei by the path of their image; empty until :meth:`find` has run.

    CFR-SAM trains its second stage on the points of the trained first one. The whole images are searched once, as in
    inference; :class:`~nucsam_monai.transforms.AugmentWithFoundd` then moves the points with the pixels.

    Example:
        In a bundle, between the stages::

            "$@found.find(@search_dataloader, @find_points, @precision)"
    """

    def __init__(self) -> None:
        self._nuclei: dict[str, FoundNuclei] = {}

    def __getitem__(self, name: str) -> FoundNuclei:
        return self._nuclei[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._nuclei)

    def __len__(self) -> int:
        return len(self._nuclei)

    def find_for(
        self, prompts: str, images: Iterable[Mapping[str, Any]], finder: PointFinder, precision: str = "auto"
    ) -> None:
        """Find the nuclei if the training uses detected ``prompts``; see :meth:`find`."""
        if prompts in ("predicted", "mixed"):
            self.find(images, finder, precision)

    def find(self, images: Iterable[Mapping[str, Any]], finder: PointFinder, precision: str = "auto") -> None:
        """Find the nuclei of all images, replacing those found before.

        Args:
            images: batches of one normalised ``image`` ``(1, 3, H, W)`` and its ``image_path``.
            finder: the trained first stage.
            precision: precision of the network, see :func:`~nucsam_monai.inferers.autocast`.
        """
        device = next(finder.prompter.parameters()).device
        found = {}
        with eval_mode(finder.prompter), autocast(precision, device):
            for batch in images:
                detected = finder(batch["image"].to(device))
                found[batch["image_path"][0]] = FoundNuclei(
                    points_and_corners(detected), np.asarray(detected.scores, dtype=np.float32)
                )
        self._nuclei = found
        count = sum(len(nuclei.scores) for nuclei in found.values())
        searched = counted(len(found), "training image")
        logger.info("the first stage found %d nuclei in %s.", count, searched)
        if not count:
            logger.warning(
                "the first stage found no nucleus in %s: train it longer, or train the second one on prompts of the "
                "ground truth.",
                searched,
            )


def points_and_corners(detected: DetectedPoints) -> NDArray[np.float32]:
    """Return the points ``(n, 1, 2)``, or with sizes ``(n, 5, 2)``: the point and the corners of its box."""
    points = np.asarray(detected.points, dtype=np.float32).reshape(-1, 1, 2)
    if detected.sizes is None:
        return points
    half = np.asarray(detected.sizes, dtype=np.float32).reshape(-1, 1, 2) / 2
    around = np.array([[0, 0], [-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float32)
    return (points + half * around).astype(np.float32)
