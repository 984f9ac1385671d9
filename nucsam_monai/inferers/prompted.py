"""One point, one nucleus: prompted segmentation of images of any size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from numpy.typing import NDArray
from torch import Tensor

from nucsam_monai.inferers.detected_points import DetectedPoints, ImagePoints, check_points
from nucsam_monai.inferers.duplicate_removal import (
    SuppressionRule,
    best_first,
    one_mask_per_prompt,
    suppress_duplicates,
)
from nucsam_monai.inferers.nucleus_masks import NucleusMasks, join_masks
from nucsam_monai.inferers.painting import paint
from nucsam_monai.inferers.precision import PRECISIONS, autocast
from nucsam_monai.inferers.prompt_tiles import Visits, best_visits, visit_tiles
from nucsam_monai.inferers.prompted_segmenter import FindPoints, PromptedSegmenter, TilePrompter
from nucsam_monai.inferers.test_time_views import IDENTITY, SIX_VIEWS
from nucsam_monai.inferers.tile_decoding import DecodingOptions, TileDecoder, TileEncoder
from nucsam_monai.inferers.tiling import EncodedTiles, plan_tiles, tile_origins
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances

Crossing = Literal["all", "best"]
"""In which tiles a prompt is decoded where tiles overlap: ``all``, or the ``best`` and others if need be."""

Classifier = Literal["prompter", "segmentor"]


@dataclass(frozen=True, repr=False)
class PromptedPrediction(NucleiPrediction):
    """The nuclei of one image, and which of them each prompt belongs to.

    Attributes:
        nucleus_of_prompt: ``(n,)`` int32, for each prompt in the given order the id of the nucleus that was drawn
            from it; where none was, because another prompt found the same nucleus or because its mask is empty,
            the id of the nucleus that it lies in, or 0.
    """

    nucleus_of_prompt: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))


class PromptedInferer(Inferer):
    """Segment the nucleus at each point, in overlapping tiles, and merge the masks into instances.

    The procedure of PromptNucSeg, which CFR-SAM shares: every tile with a prompt is encoded once; each prompt
    is decoded in all tiles that it lies in; a mask that comes close to an inner edge of its tile is presumably
    cut and gives way to one from a neighbouring tile; of the masks of one prompt the one with the highest
    predicted intersection over union remains, of overlapping nuclei as well; the rest is painted into one label
    map. Beyond that procedure a nucleus that is cut in every tile, because it is larger than the overlap, keeps
    its best mask instead of being lost. An image that fits into one tile is one tile.

    Args:
        tile_px: side of a tile, the size that the network was trained at.
        overlap_px: pixels that neighbouring tiles have in common: more than the largest nucleus and twice
            ``edge_px``.
        edge_px: see :func:`~nucsam_monai.inferers.nucleus_masks.place_masks`.
        crossing: ``all`` decodes a prompt in every tile that it lies in. ``best`` does so only in the tile
            where it is farthest from the edges, and in the others only if its mask there is empty or presumably
            cut: with an overlap of a quarter that saves up to 44 % of the masks, and for a single click up to
            three of four tiles, but the embeddings of all tiles are kept until the image is finished.
        nms: whether two nuclei are compared by ``box``, ``mask`` or ``smaller_mask``; see
            :func:`~nucsam_monai.inferers.duplicate_removal.suppress_duplicates`.
        nms_threshold: overlap above which the worse of two nuclei is dropped; 0.3 for Kumar and MoNuSeg.
        negatives: K; each prompt is decoded without and with its K nearest neighbours as negative points, and
            the better mask remains.
        test_time_augmentation: average over six views of each tile.
        tiles_per_batch: tiles that are encoded together.
        prompts_per_call: prompts that are decoded together at most; the network may divide them further.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        class_names: names of the classes of the prompts.
        classifier: whether the class of a nucleus is its prompt's or the ``segmentor``'s own.
        largest_component: keep only the largest connected part of each nucleus.
        fill_holes: fill the holes of each nucleus.

    Raises:
        ConfigurationError: a value outside of what is permitted.

    Example:
        With a prompter and a segmentor, then with the clicks of an annotator::

            inferer = PromptedInferer(tile_px=256, nms_threshold=0.3)
            nuclei = inferer(image, segmentor, prompter.find_points)
            clicked = inferer(image, segmentor, DetectedPoints(clicks, np.ones(3), np.zeros(3)))
            clicked.nucleus_of_prompt  # e.g. [1, 2, 2]: the last two clicks hit one nucleus
    """

    def __init__(
        self,
        *,
        tile_px: int = 256,
        overlap_px: int = 64,
        edge_px: int = 7,
        crossing: Crossing = "all",
        nms: SuppressionRule = "box",
        nms_threshold: float = 0.5,
        negatives: int = 0,
        test_time_augmentation: bool = False,
        tiles_per_batch: int = 4,
        prompts_per_call: int = 256,
        precision: str = "auto",
        class_names: Sequence[str] = ("nucleus",),
        classifier: Classifier = "prompter",
        largest_component: bool = False,
        fill_holes: bool = False,
    ) -> None:
        super().__init__()
        tile_origins(0, tile_px, overlap_px)
        _check_range("edge_px", edge_px, 0)
        _check_range("negatives", negatives, 0)
        _check_range("tiles_per_batch", tiles_per_batch, 1)
        _check_range("prompts_per_call", prompts_per_call, 1)
        _check_range("number of class_names", len(class_names), 1)
        _check_range("nms_threshold", nms_threshold, 0, 1)
        _check_choice("crossing", crossing, get_args(Crossing))
        _check_choice("nms", nms, get_args(SuppressionRule))
        _check_choice("classifier", classifier, get_args(Classifier))
        _check_choice("precision", precision, PRECISIONS)
        self.tile_px = tile_px
        self.overlap_px = overlap_px
        self.crossing = crossing
        self.nms: SuppressionRule = nms
        self.nms_threshold = nms_threshold
        self.tiles_per_batch = tiles_per_batch
        self.precision = precision
        self.class_names = tuple(class_names)
        self.largest_component = largest_component
        self.fill_holes = fill_holes
        self.decoding = DecodingOptions(
            views=SIX_VIEWS if test_time_augmentation else IDENTITY,
            negatives=negatives,
            prompts_per_call=prompts_per_call,
            edge_px=edge_px,
            segmenter_classifies=classifier == "segmentor",
        )

    def __call__(
        self,
        inputs: Tensor,
        network: PromptedSegmenter,
        prompts: DetectedPoints | FindPoints | TilePrompter,
    ) -> PromptedPrediction:
        """Return the nuclei of one normalised image ``(1, 3, H, W)`` of any size.

        The ids are 1..n in the order of the prompts, the scores the predicted intersections over union, cut to
        [0, 1].

        Args:
            inputs: the image, on the network's device.
            network: encodes tiles and decodes prompts.
            prompts: one point per nucleus, or what finds them in the whole image or in the encoded tiles.

        Raises:
            ConfigurationError: not one image, prompts outside of it or of an unknown class, or a network whose
                answers are of wrong shapes or not numbers.
        """
        if inputs.ndim != 4 or inputs.shape[0] != 1:
            raise ConfigurationError(
                f"inputs {tuple(inputs.shape)}: expected one image (1, 3, H, W), as the prompts are of one."
            )
        image = convert_to_tensor(inputs, track_meta=False)
        image_size = (image.shape[2], image.shape[3])
        with torch.no_grad(), autocast(self.precision, image.device):
            tiling = plan_tiles(image_size, self.tile_px, self.overlap_px)
            encoder = TileEncoder(network, image, tiling, self.decoding.views)
            encoded: list[EncodedTiles] = []
            if isinstance(prompts, TilePrompter):
                encoded = [encoder.encode(tiles) for tiles in self._batches(np.arange(len(tiling)))]
                prompts = prompts.find_in_tiles(encoded, tiling)
            found = prompts(image) if callable(prompts) else prompts
            points = check_points(found, image_size, self.class_names)
            masks = self._decode(encoder, points, encoded)
        return self.merge(masks, points, image_size)

    def merge(
        self, masks: NucleusMasks, points: ImagePoints, image_size: tuple[int, int]
    ) -> PromptedPrediction:
        """Turn the masks of all tiles into the nuclei of the image.

        Args:
            masks: any number for each prompt.
            points: the prompts.
            image_size: height and width in pixels.
        """
        ranked = best_first(one_mask_per_prompt(masks))
        kept = suppress_duplicates(ranked, self.nms_threshold, self.nms)
        instances, visible = paint(
            kept, image_size, largest_component=self.largest_component, fill_holes=self.fill_holes
        )
        nuclei = prediction_from_instances(
            instances,
            scores=np.clip(kept.iou[visible], 0, 1),
            class_ids=kept.class_ids[visible],
            class_names=self.class_names,
        )
        columns, rows = points.pixels.T
        nucleus_of_prompt = instances[rows, columns]
        nucleus_of_prompt[kept.prompts[visible]] = nuclei.table["id"]
        return PromptedPrediction(nuclei.instances, nuclei.table, None, nuclei.class_names, nucleus_of_prompt)

    def _decode(self, encoder: TileEncoder, points: ImagePoints, encoded: list[EncodedTiles]) -> NucleusMasks:
        """Decode all prompts; tiles are encoded as they are needed, unless all of them are ``encoded``."""
        visits = visit_tiles(points.pixels, encoder.tiling)
        decoder = TileDecoder(
            encoder.segmenter, encoder.image.device, points, encoder.tiling, visits, self.decoding
        )
        if self.crossing == "best":
            best = best_visits(visits, points.pixels, encoder.tiling)
            return self._decode_best(encoder, decoder, visits, best, encoded)
        needed = encoded or (encoder.encode(tiles) for tiles in self._batches(visits.tiles))
        return join_masks([masks for tiles in needed for masks in decoder.decode(tiles, visits)])

    def _decode_best(
        self,
        encoder: TileEncoder,
        decoder: TileDecoder,
        visits: Visits,
        best: NDArray[np.bool_],
        encoded: list[EncodedTiles],
    ) -> NucleusMasks:
        """Decode the best visits, and the others of prompts that have no whole mask then."""
        first, others = visits.select(best), visits.select(~best)
        known = [*encoded] or [encoder.encode(tiles) for tiles in self._batches(first.tiles)]
        masks = join_masks([part for tiles in known for part in decoder.decode(tiles, first)])
        left = others.select(~np.isin(others.prompts, masks.prompts[~masks.cut]))
        missing = np.setdiff1d(left.tiles, [tile for tiles in known for tile in tiles.tiles])
        known += [encoder.encode(tiles) for tiles in self._batches(missing)]
        return join_masks([masks, *(part for tiles in known for part in decoder.decode(tiles, left))])

    def _batches(self, tiles: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        different = np.unique(tiles)
        size = self.tiles_per_batch
        return [different[start : start + size] for start in range(0, len(different), size)]


def _check_range(name: str, value: float, least: float, most: float = math.inf) -> None:
    if not least <= value <= most:
        expected = f"{least} or more" if most == math.inf else f"{least} to {most}"
        raise ConfigurationError(f"{name} {value}: expected {expected}.")


def _check_choice(name: str, choice: str, choices: Sequence[str]) -> None:
    if choice not in choices:
        raise ConfigurationError(f"{name} '{choice}': expected one of {', '.join(choices)}.")
