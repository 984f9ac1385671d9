"""The nuclei prompter as what prompts a segmenter."""

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from nucsam_monai.inferers.anchor_selection import select_points
from nucsam_monai.inferers.detected_points import DetectedPoints
from nucsam_monai.networks.prompter import Prompter
from nucsam_monai.utils.errors import ConfigurationError


class PointFinder:
    """Find one point per nucleus of a whole image, or the classes of nuclei whose points are given.

    Args:
        prompter: the network, on the device of the images.
        mask_filter: drop points where the auxiliary mask sees no nucleus (PromptNucSeg, MAPF).
        radius_px: largest distance of points that are taken for the same nucleus.

    Raises:
        ConfigurationError: a mask filter for a prompter without auxiliary mask.

    Example::

        nuclei = PromptedInferer()(image, segmentor, PointFinder(prompter, mask_filter=True, radius_px=12))
    """

    def __init__(self, prompter: Prompter, *, mask_filter: bool = False, radius_px: float = 12.0) -> None:
        if mask_filter and not prompter.options.aux_mask:
            raise ConfigurationError(
                "mask_filter: the prompter has no auxiliary mask. Train it with aux_mask, or switch the filter off."
            )
        self.prompter = prompter
        self.mask_filter = mask_filter
        self.radius_px = radius_px

    @torch.no_grad()
    def __call__(self, image: Tensor) -> DetectedPoints:
        """Return the nuclei of one normalised image ``(1, 3, H, W)``, the most certain first."""
        output = self.prompter(image, with_mask=self.mask_filter)
        size = (image.shape[-2], image.shape[-1])
        return select_points(output, size, mask_filter=self.mask_filter, radius=self.radius_px)

    @torch.no_grad()
    def classify(self, image: Tensor, points: Tensor) -> DetectedPoints:
        """Return given points with what the anchor point nearest to each says: class, and size if it has one.

        Args:
            image: one normalised image ``(1, 3, H, W)``.
            points: ``(n, 2)`` as (x, y) in pixels.
        """
        output = self.prompter(image, with_mask=False)
        anchors = np.nan_to_num(output.points[0].float().cpu().numpy(), nan=np.inf)
        own = points.detach().cpu().float().numpy().reshape(-1, 2)
        finite = np.flatnonzero(np.isfinite(anchors).all(axis=1))
        nearest = finite[KDTree(anchors[finite]).query(own)[1]] if len(finite) else np.zeros(len(own), int)
        classes = output.class_logits[0, :, :-1].argmax(dim=-1).cpu().numpy()[nearest]
        sizes = None if output.sizes is None else output.sizes[0].float().cpu().numpy()[nearest]
        return DetectedPoints(own, np.ones(len(own)), classes, sizes)
