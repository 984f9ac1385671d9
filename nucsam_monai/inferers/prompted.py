"""Segment the nucleus at each prompt, in images of any size: encode tiles, decode prompts, merge the masks."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nucsam_monai.inferers.masks import (
    NucleusMasks,
    SuppressionRule,
    best_first,
    join_masks,
    one_mask_per_prompt,
    paint,
    place_masks,
    suppress_duplicates,
)
from nucsam_monai.inferers.points import DetectedPoints, FindPoints, ImagePoints, TilePrompter, check_points
from nucsam_monai.inferers.precision import PRECISIONS, autocast
from nucsam_monai.inferers.tiling import (
    IDENTITY,
    SIX_VIEWS,
    EncodedTiles,
    TileEncoder,
    Tiling,
    View,
    Visits,
    best_visits,
    plan_tiles,
    tile_origins,
    visit_tiles,
)
from nucsam_monai.networks.nucleus_prompts import MaskPrediction, NucleusPrompts
from nucsam_monai.networks.sam.cropped_masks import crop_masks
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances
from nucsam_monai.utils.resizing import resize_labels

Crossing = Literal["all", "best"]
"""In which tiles a prompt is decoded where tiles overlap: ``all``, or the ``best`` and others if need be."""

Classifier = Literal["prompter", "segmentor"]


class PromptedSegmenter(Protocol):
    """Declare a network that encodes an image once and decodes all of its prompts.

    The embedding may be of any type; only ``decode`` uses it.
    """

    def encode(self, image: Tensor) -> Any:
        """Return the embeddings of square images ``(B, 3, S, S)``."""
        ...

    def decode(self, embedding: Any, prompts: NucleusPrompts) -> MaskPrediction:
        """Return the masks of the prompts on all B images of the embedding, at S or an integer fraction of it."""
        ...


@dataclass(frozen=True, repr=False)
class PromptedPrediction(NucleiPrediction):
    """Hold the nuclei of one image and the nucleus of each prompt.

    Attributes:
        nucleus_of_prompt: ``(n,)`` int32, the id of the nucleus of each prompt. If a prompt's mask is empty or
            duplicates another one, it is the id of the nucleus that the prompt lies in, or 0.
    """

    nucleus_of_prompt: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))


class PromptedInferer(Inferer):
    """Segment the nucleus at each point, in overlapping tiles, and merge the masks into instances.

    This is the procedure of PromptNucSeg and CFR-SAM:

    1. Every tile with a prompt is encoded once, and each prompt is decoded in all tiles that contain it.
    2. Masks close to an inner edge of their tile are probably cut off and are replaced by a mask from an adjacent tile.
    3. The mask with the highest predicted IoU is kept for each prompt, and among overlapping nuclei.
    4. The masks are painted into one label map.

    Unlike in the papers, a nucleus that is cut off in every tile because it is larger than the overlap keeps its best
    mask. An image that fits into one tile is not divided.

    Args:
        tile_px: side length of a tile, the size that the network was trained at.
        overlap_px: overlap of adjacent tiles in pixels: more than the largest nucleus and than twice ``edge_px``.
        edge_px: width of the margin, see :func:`~nucsam_monai.inferers.masks.place_masks`.
        crossing: ``all`` decodes a prompt in every tile that contains it. ``best`` decodes it in the tile where it is
            farthest from the edges, and in the others only if that mask is empty or cut off. With an overlap of a
            quarter this saves up to 44 % of the masks, and for a single click up to three of four tiles, but the
            embeddings of all tiles are kept until the image is finished.
        nms: whether two nuclei are compared by ``box``, ``mask`` or ``smaller_mask``; see
            :func:`~nucsam_monai.inferers.masks.suppress_duplicates`.
        nms_threshold: overlap above which the worse of two nuclei is dropped; 0.3 for Kumar and MoNuSeg.
        negatives: number K of negative points; each prompt is decoded without and with its K nearest neighbours as
            negative points, and the better mask is kept.
        test_time_augmentation: average over six views of each tile.
        tiles_per_batch: tiles that are encoded together.
        prompts_per_call: largest number of prompts that are decoded together.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        class_names: names of the classes of the prompts.
        classifier: whether the class of a nucleus is its prompt's or the ``segmentor``'s own.
        largest_component: keep only the largest connected part of each nucleus.
        fill_holes: fill the holes of each nucleus.
        whole_image: resize every image so that its longer side is one tile, and the label map back, as SAM does; for
            a SAM that was not trained on tiles.

    Raises:
        ConfigurationError: a value is outside its range.

    Example:
        With a prompter and a segmenter, then with the clicks of an annotator::

            inferer = PromptedInferer(tile_px=256, nms_threshold=0.3)
            nuclei = inferer(image, segmenter, PointFinder(prompter))
            clicked = inferer(image, segmenter, DetectedPoints(clicks, np.ones(3), np.zeros(3)))
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
        whole_image: bool = False,
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
        self.views: Sequence[View] = SIX_VIEWS if test_time_augmentation else IDENTITY
        self.tiles_per_batch = tiles_per_batch
        self.precision = precision
        self.class_names = tuple(class_names)
        self.largest_component = largest_component
        self.fill_holes = fill_holes
        self.whole_image = whole_image
        self.negatives = negatives
        self.prompts_per_call = prompts_per_call
        self.edge_px = edge_px
        self.segmenter_classifies = classifier == "segmentor"

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
            ConfigurationError: not one image, prompts outside it or of an unknown class, a network whose answers are
                of wrong shapes or not numbers, or ``whole_image`` with prompts that are found in tiles.
        """
        if inputs.ndim != 4 or inputs.shape[0] != 1:
            raise ConfigurationError(
                f"inputs {tuple(inputs.shape)}: expected one image (1, 3, H, W), as the prompts are of one."
            )
        image = convert_to_tensor(inputs, track_meta=False)
        return (self._on_whole_image if self.whole_image else self._on_tiles)(image, network, prompts)

    def _on_whole_image(
        self,
        image: Tensor,
        network: PromptedSegmenter,
        prompts: DetectedPoints | FindPoints | TilePrompter,
    ) -> PromptedPrediction:
        if isinstance(prompts, TilePrompter):
            raise ConfigurationError(
                "whole_image: found together with a prompter that shares the encoder and sees tiles. Leave it out."
            )
        height, width = image.shape[2:]
        points = check_points(
            prompts(image) if callable(prompts) else prompts, (height, width), self.class_names
        )
        scale = self.tile_px / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        factors = np.array([size[1] / width, size[0] / height])
        moved = DetectedPoints(
            (points.xy + 0.5) * factors - 0.5,
            np.ones(len(points.xy)),
            points.class_ids,
            None if points.sizes is None else points.sizes * factors,
        )
        resized = F.interpolate(image, size=size, mode="bilinear", antialias=True)
        return _resized_back(self._on_tiles(resized, network, moved), (height, width))

    def _on_tiles(
        self,
        image: Tensor,
        network: PromptedSegmenter,
        prompts: DetectedPoints | FindPoints | TilePrompter,
    ) -> PromptedPrediction:
        image_size = (image.shape[2], image.shape[3])
        with torch.no_grad(), autocast(self.precision, image.device):
            tiling = plan_tiles(image_size, self.tile_px, self.overlap_px)
            encoder = TileEncoder(network, image, tiling, self.views)
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
        decoder = _TileDecoder(self, encoder, points, visits)
        if self.crossing == "best":
            best = best_visits(visits, points.pixels, encoder.tiling)
            return self._decode_best(encoder, decoder, visits, best, encoded)
        needed = encoded or (encoder.encode(tiles) for tiles in self._batches(visits.tiles))
        return join_masks([masks for tiles in needed for masks in decoder.decode(tiles, visits)])

    def _decode_best(
        self,
        encoder: TileEncoder,
        decoder: "_TileDecoder",
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


def _resized_back(nuclei: PromptedPrediction, size: tuple[int, int]) -> PromptedPrediction:
    """Return the nuclei of a resized image in the pixels of the image itself; what is below a pixel there is lost."""
    instances = resize_labels(nuclei.instances, size)
    left = np.isin(nuclei.table["id"], instances)
    new_id = np.zeros(len(nuclei.table) + 1, dtype=np.int32)
    new_id[1:][left] = np.arange(1, left.sum() + 1)
    found = prediction_from_instances(
        new_id[instances],
        scores=nuclei.table["score"][left],
        class_ids=nuclei.table["class_id"][left],
        class_names=nuclei.class_names,
    )
    of_prompt = new_id[nuclei.nucleus_of_prompt]
    return PromptedPrediction(found.instances, found.table, None, found.class_names, of_prompt)


@dataclass(frozen=True)
class _TileDecoder:
    """Decode the prompts of one image.

    Attributes:
        options: how prompts are decoded.
        encoder: encodes the image's tiles.
        points: the prompts.
        visits: all prompts of every tile; they are each other's neighbours.
    """

    options: PromptedInferer
    encoder: TileEncoder
    points: ImagePoints
    visits: Visits

    @property
    def tiling(self) -> Tiling:
        """The tiles of the image."""
        return self.encoder.tiling

    def decode(self, encoded: EncodedTiles, visits: Visits) -> Iterator[NucleusMasks]:
        """Yield the masks of those visits whose tiles are encoded, some at a time."""
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
            ConfigurationError: the prompts are boxes, which have no negative points.
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
        device, side = self.encoder.image.device, self.tiling.tile_px
        xy = torch.from_numpy(points).float().to(device)
        marks = torch.from_numpy(labels).to(device)
        # On the CPU the counts cost the decoder no synchronisation.
        counts = torch.from_numpy(np.bincount(slots, minlength=len(encoded.tiles)))

        def answers() -> Iterator[MaskPrediction]:
            for view, embedding in zip(self.encoder.views, encoded.embeddings, strict=True):
                prompts = NucleusPrompts(view.of_points(xy, side), marks, counts)
                answer = self.encoder.segmenter.decode(embedding, prompts)
                self._check(answer, len(slots))
                # In float32, whatever the network computes in.
                yield _combine(Tensor.float, answer._replace(logits=view.undo(answer.logits)))

        total = reduce(partial(_combine, torch.add), answers())
        return _combine(lambda values: values / len(self.encoder.views), total)

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


def nearest_others(
    xy: NDArray[np.float64], visits: Visits, all_visits: Visits, count: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Find the nearest other points of the same tile (PromptNucSeg, negative prompts).

    A point at the position of the prompt itself is not a neighbour: as a negative point it would contradict the prompt.

    Args:
        xy: ``(n, 2)`` positions of all prompts in pixels.
        visits: the N visits whose neighbours are looked for.
        all_visits: visits among which neighbours are searched.
        count: K.

    Returns:
        Positions ``(N, K, 2)`` in the pixels of ``xy``, the nearest first, and labels ``(N, K)``: 0 for a
        neighbour, -1 if there are no more; those have the position of the prompt.
    """
    points = np.repeat(xy[visits.prompts][:, None], count, axis=1)
    labels = np.full((len(visits), count), -1, dtype=np.int64)
    for tile in np.unique(visits.tiles):
        rows = np.flatnonzero(visits.tiles == tile)
        others = xy[all_visits.of_tiles(np.array([tile])).prompts]
        away = ((points[rows, :1] - others) ** 2).sum(axis=2)
        away[away == 0] = np.inf
        nearest = np.argsort(away, axis=1, kind="stable")[:, :count]
        found = np.isfinite(np.take_along_axis(away, nearest, axis=1))
        which, slot = np.nonzero(found)
        points[rows[which], slot] = others[nearest[which, slot]]
        labels[rows[which], slot] = 0
    return points, labels


def _check_range(name: str, value: float, least: float, most: float = math.inf) -> None:
    if not least <= value <= most:
        expected = f"{least} or more" if most == math.inf else f"{least} to {most}"
        raise ConfigurationError(f"{name} {value}: expected {expected}.")


def _check_choice(name: str, choice: str, choices: Sequence[str]) -> None:
    if choice not in choices:
        raise ConfigurationError(f"{name} '{choice}': expected one of {', '.join(choices)}.")
