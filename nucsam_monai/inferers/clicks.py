"""Segment nuclei from clicks and boxes; every tile is encoded once."""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from nucsam_monai.inferers.precision import autocast
from nucsam_monai.inferers.tiling import Tiling, plan_tiles, tiles_of
from nucsam_monai.networks.nucleus_prompts import MaskPrediction, PromptableNetwork
from nucsam_monai.networks.sam.cropped_masks import CroppedMasks, crop_masks
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.image_source import ImageSource, Region
from nucsam_monai.utils.nucleus import Nucleus, component_at, split_by_clicks

logger = logging.getLogger(__name__)

Prepare = Callable[[np.ndarray], Tensor]

TILES_KEPT = 64
_MARGIN_PX = 3


@dataclass(frozen=True)
class Clicks:
    """Hold the points and boxes that a user marked in an image, in pixels with pixel centres at integers.

    Attributes:
        foreground: ``(n, 2)`` float64 (x, y), one click on each of n nuclei.
        background: ``(m, 2)`` float64 (x, y) that belong to no clicked nucleus.
        boxes: ``(k, 4)`` float64 (x_min, y_min, x_max, y_max), one around each of k nuclei.
    """

    foreground: NDArray[np.float64]
    background: NDArray[np.float64]
    boxes: NDArray[np.float64]


def clicks_in_image(
    size: tuple[int, int],
    foreground: ArrayLike | None = None,
    background: ArrayLike | None = None,
    boxes: ArrayLike | None = None,
) -> Clicks:
    """Check the clicks and boxes of an image, and clip them to its pixels.

    Args:
        size: height and width of the image in pixels.
        foreground: ``(n, 2)`` (x, y), one click on each nucleus.
        background: ``(m, 2)`` (x, y), clicks on the background.
        boxes: ``(k, 4)`` (x_min, y_min, x_max, y_max), one box around each nucleus.

    Raises:
        ConfigurationError: an array has another shape or values that are not finite, a box is smaller than a pixel, or
            a click or the centre of a box lies outside the image.
    """
    drawn = _rows_of(boxes, 4, "boxes")
    if (drawn[:, 2:] - drawn[:, :2] < 1).any():
        raise ConfigurationError(
            "boxes: expected [x_min, y_min, x_max, y_max] of at least 1 pixel each way, found "
            f"{drawn[(drawn[:, 2:] - drawn[:, :2] < 1).any(axis=1)][0].tolist()}."
        )
    _inside(_centres(drawn), "boxes", size)
    return Clicks(
        _inside(_rows_of(foreground, 2, "points"), "points", size),
        _inside(_rows_of(background, 2, "background"), "background", size),
        np.clip(drawn, 0, [size[1] - 1, size[0] - 1] * 2),
    )


def _rows_of(values: ArrayLike | None, columns: int, name: str) -> NDArray[np.float64]:
    try:
        rows = np.asarray(() if values is None else values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{name}: expected (n, {columns}) numbers of pixels ({error}).") from error
    rows = rows.reshape(0, columns) if not rows.size else rows
    if rows.ndim != 2 or rows.shape[1] != columns or not np.isfinite(rows).all():
        raise ConfigurationError(
            f"{name}: expected (n, {columns}) finite numbers of pixels, found an array of shape {rows.shape}."
        )
    return rows


def _inside(points: NDArray[np.float64], name: str, size: tuple[int, int]) -> NDArray[np.float64]:
    # A pixel reaches half a pixel to each side of its centre.
    height, width = size
    inside = ((points >= -0.5) & (points <= np.array([width, height]) - 0.5)).all(axis=1)
    if not inside.all():
        x, y = points[np.argmin(inside)]
        raise ConfigurationError(f"{name}: ({x:g}, {y:g}) is outside of the image of {width} x {height} px.")
    return np.clip(points, 0, [width - 1, height - 1])


def _centres(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


class _TwiceTheSize(ImageSource):
    """Show an image at twice its size; regions with even bounds are read."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.height, self.width = 2 * source.height, 2 * source.width

    def read(self, region: Region) -> np.ndarray:
        """See :meth:`ImageSource.read`."""
        pixels = self.source.read(Region(*(value // 2 for value in region)))
        return cv2.resize(pixels, (region.width, region.height), interpolation=cv2.INTER_LINEAR)

    def close(self) -> None:
        """See :meth:`ImageSource.close`."""
        self.source.close()


class ClickSegmenter:
    """Segment one nucleus for each click or box.

    A large image is covered by tiles that overlap by half, and each click is decoded in the tile whose centre is
    nearest. Encoded tiles are cached by the digest of their pixels, so another click on the same image needs only the
    decoder.

    Args:
        network: network that encodes tiles and decodes prompts.
        prepare: function from ``(H, W, 3)`` uint8 RGB to ``(1, 3, H, W)`` on the network's device.
        tile_px: side length of the network's tiles.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        enlarge_below_px: nuclei of a smaller diameter are segmented again in the image at twice its size; 0 disables
            this.

    Example:
        >>> clicked = ClickSegmenter(network, segmenter.prepare, 256)  # doctest: +SKIP
        >>> nuclei = clicked.segment(source, clicks_in_image((256, 256), [[31, 40]]))  # doctest: +SKIP
    """

    def __init__(
        self,
        network: PromptableNetwork,
        prepare: Prepare,
        tile_px: int,
        precision: str = "auto",
        enlarge_below_px: float = 0.0,
    ) -> None:
        self.network = network
        self.prepare = prepare
        self.tile_px = tile_px
        self.precision = precision
        self.enlarge_below_px = enlarge_below_px
        self.encoded_tiles = 0
        self._kept: OrderedDict[bytes, Any] = OrderedDict()

    def segment(self, source: ImageSource, clicks: Clicks) -> list[Nucleus | None]:
        """Segment the nuclei of the clicks, then of the boxes, in order; None for an empty mask.

        Pixels that two nuclei claim are assigned to one of them, so a second click splits two merged nuclei.

        Args:
            source: image.
            clicks: clicks and boxes in pixels of the image.
        """
        found = self._masks(source, clicks)
        if small := [index for index, mask in found.items() if self._is_small(mask)]:
            count = len(clicks.foreground)
            enlarged = Clicks(
                2 * clicks.foreground[[index for index in small if index < count]] + 0.5,
                2 * clicks.background + 0.5,
                2 * clicks.boxes[[index - count for index in small if index >= count]] + 0.5,
            )
            for position, mask in self._masks(_TwiceTheSize(source), enlarged).items():
                again, index = mask.halved(), small[position]
                if again.mask.size and again.score >= found[index].score:
                    found[index] = again
        at = np.concatenate([clicks.foreground, _centres(clicks.boxes)])
        pixels = np.floor(at[list(found)] + 0.5).astype(np.int64)
        nuclei: list[Nucleus | None] = [None] * len(at)
        for index, nucleus in zip(found, split_by_clicks(list(found.values()), pixels), strict=True):
            nuclei[index] = nucleus if nucleus.mask.size else None
        return nuclei

    def _is_small(self, nucleus: Nucleus) -> bool:
        return 2 * np.sqrt(nucleus.area_px / np.pi) < self.enlarge_below_px

    def _masks(self, source: ImageSource, clicks: Clicks) -> dict[int, Nucleus]:
        """Return the masks, which may overlap, in the order of the clicks and then of the boxes; none where empty."""
        tiling = plan_tiles((source.height, source.width), self.tile_px, self.tile_px // 2)
        at = np.concatenate([clicks.foreground, _centres(clicks.boxes)])
        found: dict[int, Nucleus] = {}
        tiles = tiles_of(at, tiling)
        for tile in np.unique(tiles).tolist():
            here = np.flatnonzero(tiles == tile)
            of_clicks, of_boxes = here[here < len(clicks.foreground)], here[here >= len(clicks.foreground)]
            origin = tiling.origins(np.array([tile]))[0]
            with torch.no_grad():
                embedding = self._embedding(source, tiling, origin)
                masks = self._of_clicks(embedding, at[of_clicks] - origin, clicks.background - origin, tiling)
                shifted = clicks.boxes[of_boxes - len(clicks.foreground)] - np.tile(origin, 2)
                masks += self._of_boxes(embedding, shifted, tiling)
            for index, mask in zip(here.tolist(), masks, strict=True):
                if mask is not None:
                    found[index] = mask.moved(*origin.tolist())
        return dict(sorted(found.items()))

    def _embedding(self, source: ImageSource, tiling: Tiling, origin: NDArray[np.int64]) -> Any:
        height, width = tiling.covered_size
        pixels = np.ascontiguousarray(source.read(Region(int(origin[0]), int(origin[1]), width, height)))
        key = hashlib.blake2b(pixels.data, digest_size=16, person=f"{width}x{height}".encode()).digest()
        if key not in self._kept:
            image = F.pad(self.prepare(pixels), (0, self.tile_px - width, 0, self.tile_px - height))
            with autocast(self.precision, image.device):
                self._kept[key] = self.network.encode(image)
            self.encoded_tiles += 1
            if len(self._kept) > TILES_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _of_clicks(
        self,
        embedding: Any,
        clicks: NDArray[np.float64],
        background: NDArray[np.float64],
        tiling: Tiling,
    ) -> list[Nucleus | None]:
        """Return the nucleus at each click of one tile: the part of its mask at the click."""
        if not len(clicks):
            return []
        near = background[((background >= 0) & (background < self.tile_px)).all(axis=1)]
        points = np.concatenate([clicks[:, None], np.broadcast_to(near, (len(clicks), *near.shape))], axis=1)
        labels = np.zeros(points.shape[:2], dtype=np.int64)
        labels[:, 0] = 1
        cropped = self._crop(
            lambda device: self.network.decode_clicks(
                embedding, torch.from_numpy(points).float().to(device), torch.from_numpy(labels).to(device)
            ),
            embedding,
            tiling,
        )
        pixels = np.floor(clicks + 0.5).astype(np.int64)
        return [
            None if mask is None else component_at(mask, *at)
            for mask, at in zip(_nuclei(cropped), pixels.tolist(), strict=True)
        ]

    def _of_boxes(self, embedding: Any, boxes: NDArray[np.float64], tiling: Tiling) -> list[Nucleus | None]:
        """Return the nucleus in each box of one tile.

        The network is prompted with the box and with a click at its centre, because most bundles were trained without
        boxes; the mask whose box is closer to the drawn box is taken.
        """
        if not len(boxes):
            return []
        asked = np.clip(boxes, 0, self.tile_px - 1)
        by_box = self._crop(
            lambda device: self.network.decode_boxes(embedding, torch.from_numpy(asked).float().to(device)),
            embedding,
            tiling,
        )
        by_click = self._of_clicks(embedding, _centres(boxes), np.zeros((0, 2)), tiling)
        candidates = zip(_nuclei(by_box), by_click, boxes.tolist(), strict=True)
        return [_best_in_box((one, other), box) for one, other, box in candidates]

    def _crop(
        self, decode: Callable[[torch.device], MaskPrediction], embedding: Any, tiling: Tiling
    ) -> CroppedMasks:
        device = (embedding if isinstance(embedding, Tensor) else embedding.embedding).device
        with autocast(self.precision, device):
            masks = decode(device)
        side = masks.logits.shape[-1]
        if self.tile_px % side:
            raise ConfigurationError(f"masks of {side} px do not divide the tile of {self.tile_px} px.")
        return crop_masks(
            masks.logits.float(),
            masks.iou.float(),
            pixels_per_logit=self.tile_px // side,
            image_size=tiling.covered_size,
        )


def _nuclei(cropped: CroppedMasks) -> list[Nucleus | None]:
    scores = np.clip(np.nan_to_num(cropped.iou), 0, 1).tolist()
    return [
        Nucleus(x, y, mask, 0, score) if mask.size else None
        for (x, y, _, _), mask, score in zip(cropped.boxes.tolist(), cropped.masks, scores, strict=True)
    ]


def _best_in_box(candidates: Sequence[Nucleus | None], box: Sequence[float]) -> Nucleus | None:
    """Crop the masks to a little more than the box, and return the one whose central part fills it best."""
    middle = (round((box[0] + box[2]) / 2), round((box[1] + box[3]) / 2))
    x0, y0, x1, y1 = (int(side) for side in (box[0], box[1], np.ceil(box[2]) + 1, np.ceil(box[3]) + 1))
    frame = Nucleus(
        x0 - _MARGIN_PX,
        y0 - _MARGIN_PX,
        np.ones((y1 - y0 + 2 * _MARGIN_PX, x1 - x0 + 2 * _MARGIN_PX), dtype=np.bool_),
    )
    drawn = Nucleus(x0, y0, np.ones((y1 - y0, x1 - x0), dtype=np.bool_))
    best, best_fit = None, 0.0
    for candidate in candidates:
        inside = None if candidate is None else candidate.common_part(frame)
        if inside is None or not inside.mask.size:
            continue
        inside = component_at(inside, *middle)
        own = Nucleus(inside.x, inside.y, np.ones_like(inside.mask))
        common = own.common_pixels(drawn)
        fit = common / (own.area_px + drawn.area_px - common)
        if fit > best_fit:
            best, best_fit = inside, fit
    return best
