"""From prompts to masks, a batch of tiles at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nucsam_monai.inferers.detected_points import ImagePoints
from nucsam_monai.inferers.negative_points import nearest_others
from nucsam_monai.inferers.nucleus_masks import NucleusMasks, place_masks
from nucsam_monai.inferers.prompt_tiles import Visits
from nucsam_monai.inferers.prompted_segmenter import PromptedSegmenter
from nucsam_monai.inferers.test_time_views import View
from nucsam_monai.inferers.tiling import EncodedTiles, Tiling
from nucsam_monai.networks.nucleus_prompts import MaskPrediction, NucleusPrompts
from nucsam_monai.networks.sam.cropped_masks import crop_masks
from nucsam_monai.utils.errors import ConfigurationError


@dataclass(frozen=True)
class DecodingOptions:
    """How prompts are decoded.

    Attributes:
        views: test-time views; the logits and predicted IoUs of all are averaged.
        negatives: K, the number of neighbours that are tried as negative points of each prompt.
        prompts_per_call: prompts that are decoded together, which bounds the memory for their logits.
        edge_px: see :func:`~nucsam_monai.inferers.nucleus_masks.place_masks`.
        segmenter_classifies: take the class from the segmenter's class logits, not from the prompt.
    """

    views: Sequence[View]
    negatives: int
    prompts_per_call: int
    edge_px: int
    segmenter_classifies: bool


@dataclass(frozen=True)
class TileEncoder:
    """Encodes the tiles of one image.

    Attributes:
        segmenter: the network.
        image: ``(1, 3, H, W)``.
        tiling: the tiles.
        views: test-time views.
    """

    segmenter: PromptedSegmenter
    image: Tensor
    tiling: Tiling
    views: Sequence[View]

    def encode(self, tiles: NDArray[np.int64]) -> EncodedTiles:
        """Encode tiles ``(B,)`` once in every view."""
        batch = self.tiling.cut(self.image, tiles)
        return EncodedTiles(tiles, [self.segmenter.encode(view.of(batch)) for view in self.views])


class TileDecoder:
    """Decodes the prompts of one image.

    Args:
        segmenter: the network.
        device: that it runs on.
        points: the prompts.
        tiling: the tiles.
        visits: all prompts of every tile; they are each other's neighbours.
        options: how prompts are decoded.
    """

    def __init__(
        self,
        segmenter: PromptedSegmenter,
        device: torch.device,
        points: ImagePoints,
        tiling: Tiling,
        visits: Visits,
        options: DecodingOptions,
    ) -> None:
        self.segmenter = segmenter
        self.device = device
        self.points = points
        self.tiling = tiling
        self.visits = visits
        self.options = options

    def decode(self, encoded: EncodedTiles, visits: Visits) -> Iterator[NucleusMasks]:
        """Decode those of the visits that the encoded tiles have, a group of masks at a time."""
        visits = visits.of_tiles(encoded.tiles)
        for start in range(0, len(visits), self.options.prompts_per_call):
            chunk = slice(start, start + self.options.prompts_per_call)
            yield self._decode_chunk(encoded, Visits(visits.tiles[chunk], visits.prompts[chunk]))

    def _decode_chunk(self, encoded: EncodedTiles, visits: Visits) -> NucleusMasks:
        origins = self.tiling.origins(visits.tiles)
        slots = np.searchsorted(encoded.tiles, visits.tiles)
        positive, labels = self.points.in_tiles(visits.prompts, origins, self.tiling.tile_px)
        masks = self._predict(encoded, slots, positive, labels)
        if self.options.negatives:
            masks = self._try_negatives(encoded, slots, positive, visits, masks)
        class_ids = self.points.class_ids[visits.prompts]
        if self.options.segmenter_classifies:
            class_ids = _classes(masks)
        cropped = crop_masks(
            masks.logits,
            masks.iou,
            pixels_per_logit=self.tiling.tile_px // masks.logits.shape[-1],
            image_size=self.tiling.covered_size,
        )
        return place_masks(
            cropped,
            origins,
            visits.prompts,
            class_ids,
            tile_px=self.tiling.tile_px,
            image_size=self.tiling.image_size,
            edge_px=self.options.edge_px,
        )

    def _try_negatives(
        self,
        encoded: EncodedTiles,
        slots: NDArray[np.int64],
        positive: NDArray[np.float64],
        visits: Visits,
        alone: MaskPrediction,
    ) -> MaskPrediction:
        """Decode again with negative points; of both masks the one with the higher predicted IoU remains.

        A prompt without neighbours is not decoded again.

        Raises:
            ConfigurationError: the prompts are boxes, beside which there are no negative points.
        """
        if self.points.sizes is not None:
            raise ConfigurationError(
                f"negatives {self.options.negatives}: expected 0, because the prompts are boxes."
            )
        negatives, labels = nearest_others(self.points.xy, visits, self.visits, self.options.negatives)
        rows = np.flatnonzero((labels == 0).any(axis=1))
        if not len(rows):
            return alone
        origins = self.tiling.origins(visits.tiles)[:, None]
        points = np.concatenate([positive, negatives - origins], axis=1)
        labels = np.concatenate([np.ones_like(labels[:, :1]), labels], axis=1)
        guided = self._predict(encoded, slots[rows], points[rows], labels[rows])
        better = guided.iou[:, 0] > alone.iou[rows, 0]
        replaced = torch.from_numpy(rows).to(better.device)[better]
        return _combine(lambda old, new: old.index_copy(0, replaced, new[better]), alone, guided)

    def _predict(
        self,
        encoded: EncodedTiles,
        slots: NDArray[np.int64],
        points: NDArray[np.float64],
        labels: NDArray[np.int64],
    ) -> MaskPrediction:
        """Return the float32 mean over all views, the logits turned back to the tile.

        Args:
            encoded: B tiles.
            slots: ``(N,)`` rising, the position of each prompt's tile among the B.
            points: ``(N, 1 + K, 2)`` in pixels of the tiles, or ``(N, 2, 2)`` opposite corners of boxes.
            labels: ``(N, 1 + K)``.
        """
        device, side = self.device, self.tiling.tile_px
        xy = torch.from_numpy(points).float().to(device)
        marks = torch.from_numpy(labels).to(device)
        # On the CPU the counts cost the decoder no synchronisation.
        counts = torch.from_numpy(np.bincount(slots, minlength=len(encoded.tiles)))
        total: MaskPrediction | None = None
        for view, embedding in zip(self.options.views, encoded.embeddings, strict=True):
            prompts = NucleusPrompts(view.of_points(xy, side), marks, counts)
            answer = self.segmenter.decode(embedding, prompts)
            self._check(answer, len(slots))
            # In float32, whatever the network computes in.
            answer = _combine(Tensor.float, answer._replace(logits=view.undo(answer.logits)))
            total = answer if total is None else _combine(torch.add, total, answer)
        if total is None:
            raise ConfigurationError("views: expected at least one.")
        return _combine(lambda values: values / len(self.options.views), total)

    def _check(self, answer: MaskPrediction, count: int) -> None:
        """Refuse masks of wrong shapes, and numbers that no mask can be made of."""
        shape, side = tuple(answer.logits.shape), self.tiling.tile_px
        fits = len(shape) == 4 and shape[:2] == (count, 1) and shape[2] == shape[3] and shape[2] > 0
        if not fits or side % shape[2] or tuple(answer.iou.shape) != (count, 1):
            raise ConfigurationError(
                f"segmenter: logits {shape} and IoU {tuple(answer.iou.shape)} for {count} prompts on tiles of "
                f"{side} px; expected ({count}, 1, s, s) with s a divisor of {side}, and ({count}, 1)."
            )
        if answer.iou.isnan().any() or answer.logits.isnan().any():
            raise ConfigurationError(
                f"segmenter: NaN among the logits or predicted IoUs of {count} prompts. Where the precision is "
                "fp16 its range was left: take bf16 or fp32. Otherwise the image or the weights hold NaN."
            )


def _combine(function: Callable[..., Tensor], *predictions: MaskPrediction) -> MaskPrediction:
    """Apply a function to the logits, the IoUs and, where all have them, the class logits of predictions."""
    classes = [one.class_logits for one in predictions if one.class_logits is not None]
    return MaskPrediction(
        function(*(one.logits for one in predictions)),
        function(*(one.iou for one in predictions)),
        function(*classes) if len(classes) == len(predictions) else None,
    )


def _classes(masks: MaskPrediction) -> NDArray[np.int64]:
    if masks.class_logits is None:
        raise ConfigurationError(
            "classifier 'segmentor': the network gives no class logits. Build it with a class head, or take "
            "the classes from the prompter."
        )
    return masks.class_logits.argmax(dim=1).cpu().numpy()
