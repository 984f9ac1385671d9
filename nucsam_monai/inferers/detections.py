"""Find objects in overlapping tiles of an image of any size, and merge them into instances."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from torch import Tensor

from nucsam_monai.inferers.masks import (
    NucleusMasks,
    SuppressionRule,
    join_masks,
    paint,
    place_masks,
    suppress_duplicates,
)
from nucsam_monai.inferers.precision import PRECISIONS, autocast
from nucsam_monai.inferers.tiling import Tiling, plan_tiles
from nucsam_monai.networks.detector import Detections
from nucsam_monai.networks.sam.cropped_masks import crop_masks
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances

Detector = Callable[[Tensor], Sequence[Detections]]


class DetectionInferer(Inferer):
    """Detect nuclei tile by tile; nuclei with higher scores are painted over the others.

    A nucleus at the edge of a tile is taken from the adjacent tile, which shows the whole nucleus if it is not larger
    than the overlap; otherwise its parts remain.

    Args:
        tile_px: side length of a tile.
        overlap_px: least overlap of adjacent tiles in pixels.
        min_score: nuclei with a lower score are dropped.
        threshold: threshold of the mask probability.
        nms: how two masks of the same nucleus are recognised, see :data:`~nucsam_monai.inferers.masks.SuppressionRule`.
        nms_threshold: overlap above which the nucleus with the lower score is dropped.
        precision: precision of the network, see :data:`~nucsam_monai.inferers.precision.PRECISIONS`; boxes are
            coarser in half precision.
        class_names: names of the classes of nuclei.

    Raises:
        ConfigurationError: a value is outside its range.
    """

    def __init__(
        self,
        tile_px: int,
        overlap_px: int,
        min_score: float = 0.5,
        threshold: float = 0.5,
        nms: SuppressionRule = "smaller_mask",
        nms_threshold: float = 0.5,
        precision: str = "fp32",
        class_names: Sequence[str] = ("nucleus",),
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ConfigurationError(f"precision '{precision}': expected one of {', '.join(PRECISIONS)}.")
        for name, value in (
            ("min_score", min_score),
            ("threshold", threshold),
            ("nms_threshold", nms_threshold),
        ):
            if not 0 <= value < 1:
                raise ConfigurationError(f"{name} {value}: expected 0 or more and below 1.")
        self.tile_px = tile_px
        self.overlap_px = overlap_px
        self.min_score = min_score
        self.threshold = threshold
        self.nms: SuppressionRule = nms
        self.nms_threshold = nms_threshold
        self.precision = precision
        self.class_names = tuple(class_names)

    def __call__(self, inputs: Tensor, network: Detector) -> NucleiPrediction:
        """Detect the nuclei of one normalised image ``(1, 3, H, W)`` of any size; ids are in the order of the tiles.

        Args:
            inputs: image on the network's device.
            network: detector for square images ``(B, 3, S, S)``.

        Raises:
            ConfigurationError: ``inputs`` is not one image.
        """
        if inputs.ndim != 4 or inputs.shape[0] != 1:
            raise ConfigurationError(f"inputs {tuple(inputs.shape)}: expected one image (1, 3, H, W).")
        image = convert_to_tensor(inputs, track_meta=False)
        tiling = plan_tiles(image.shape[2:], self.tile_px, self.overlap_px)
        with torch.no_grad(), autocast(self.precision, image.device):
            found = [self._masks(network, image, tiling, tile) for tile in range(len(tiling))]
        masks = join_masks(found)
        ranked = masks.take(np.lexsort((masks.prompts, -masks.iou, masks.cut)))
        kept = suppress_duplicates(ranked, self.nms_threshold, self.nms)
        instances, visible = paint(kept, tiling.image_size)
        return prediction_from_instances(
            instances,
            scores=kept.iou[visible],
            class_ids=kept.class_ids[visible],
            class_names=self.class_names,
        )

    def _masks(self, network: Detector, image: Tensor, tiling: Tiling, tile: int) -> NucleusMasks:
        index = np.array([tile])
        (found,) = network(tiling.cut(image, index))
        sure = found.scores >= self.min_score
        cropped = crop_masks(
            found.masks[sure] - self.threshold,
            found.scores[sure][:, None],
            pixels_per_logit=1,
            image_size=tiling.covered_size,
        )
        return place_masks(
            cropped,
            np.repeat(tiling.origins(index), len(cropped), axis=0),
            np.arange(len(cropped)) + tile * len(found.scores),
            found.class_ids[sure].cpu().numpy(),
            tile_px=tiling.tile_px,
            image_size=tiling.image_size,
            edge_px=0,
        )
