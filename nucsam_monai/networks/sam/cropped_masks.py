"""Crop masks to their boxes, so that no full-size mask is ever stored or moved."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from nucsam_monai.utils.errors import ConfigurationError


@dataclass(frozen=True)
class CroppedMasks:
    """Hold the binary masks of N prompts at the image's resolution.

    Attributes:
        boxes: ``(N, 4)`` int64 as (x_min, y_min, x_max, y_max) in pixels, the maxima exclusive: the smallest
            boxes around the masks; an empty mask has (0, 0, 0, 0).
        areas: ``(N,)`` int64, pixels of each mask.
        masks: N boolean arrays ``(y_max - y_min, x_max - x_min)``.
        iou: ``(N,)`` float32, predicted intersection over union.
    """

    boxes: npt.NDArray[np.int64]
    areas: npt.NDArray[np.int64]
    masks: list[npt.NDArray[np.bool_]]
    iou: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.masks)


def crop_masks(
    logits: Tensor, iou: Tensor, *, pixels_per_logit: int, image_size: tuple[int, int] | None = None
) -> CroppedMasks:
    """Cut the masks out of the decoder's logits and move them to the host.

    A mask is where the logits, resized bilinearly to pixels, are positive. A pixel is positive only where one
    of the logits that it lies between is; so the box around the positive logits with a margin of one logit
    holds the whole mask. Only these pieces of the small logits are moved, all at once, and resized on the
    host, each for itself. The result equals that of resizing the whole: bit by bit where
    ``pixels_per_logit`` is a power of two, as in every SAM, otherwise up to rounding.

    Args:
        logits: ``(N, 1, h, w)`` single-mask logits of
            :func:`~nucsam_monai.networks.sam.decoder.decode_prompts`.
        iou: ``(N, 1)`` predicted intersection over union.
        pixels_per_logit: side of a logit in pixels: a quarter of the variant's patch, or an eighth with a fine map.
        image_size: height and width in pixels of the image without the padding at its bottom and right; by
            default there is none.

    Raises:
        ConfigurationError: the shapes, the factor or the image's size do not fit together.

    Example:
        >>> mask = torch.full((1, 1, 8, 8), -1.0)
        >>> mask[0, 0, 2:4, 3:7] = 1.0
        >>> crop_masks(mask, torch.ones(1, 1), pixels_per_logit=2).boxes.tolist()
        [[6, 4, 14, 8]]
    """
    if logits.ndim != 4 or logits.shape[1] != 1 or iou.shape != logits.shape[:2]:
        raise ConfigurationError(
            f"logits {tuple(logits.shape)} and IoU {tuple(iou.shape)}: expected (N, 1, h, w) and (N, 1), "
            "one mask per prompt."
        )
    if pixels_per_logit < 1:
        raise ConfigurationError(f"pixels_per_logit {pixels_per_logit}: expected a positive integer.")
    height, width = (pixels_per_logit * side for side in logits.shape[2:])
    image_height, image_width = image_size or (height, width)
    if not (0 < image_height <= height and 0 < image_width <= width):
        raise ConfigurationError(
            f"image_size {image_size}: expected at most the {height} x {width} px that the logits cover."
        )
    maps = logits.detach()[:, 0]
    windows = _windows_with_margin(maps > 0)
    boxes = np.zeros((len(maps), 4), dtype=np.int64)
    masks = []
    for box, (left, top, *_), piece in zip(boxes, windows, _moved_to_host(maps, windows), strict=True):
        x, y = int(left) * pixels_per_logit, int(top) * pixels_per_logit
        mask = _resized(piece, pixels_per_logit)[: max(0, image_height - y), : max(0, image_width - x)]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            masks.append(np.zeros((0, 0), dtype=np.bool_))
            continue
        y_range, x_range = (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
        box[:] = (x + x_range[0], y + y_range[0], x + x_range[1], y + y_range[1])
        # A copy: a view would keep the whole window in memory.
        masks.append(mask[slice(*y_range), slice(*x_range)].copy())
    areas = np.array([np.count_nonzero(mask) for mask in masks], dtype=np.int64)
    return CroppedMasks(boxes, areas, masks, iou.detach()[:, 0].float().cpu().numpy())


def _windows_with_margin(positive: Tensor) -> npt.NDArray[np.int64]:
    """Return ``(N, 4)`` boxes around the positive logits and their neighbours; all zero without any."""
    count, height, width = positive.shape
    if not count:
        return np.zeros((0, 4), dtype=np.int64)
    ends = []
    marked = positive.view(torch.uint8)  # whose maximum takes a tenth of the time of any()
    for marks, side in ((marked.amax(dim=1), width), (marked.amax(dim=2), height)):
        first, last = marks.argmax(dim=1), side - 1 - marks.flip(1).argmax(dim=1)
        ends.append(((first - 1).clamp(min=0), (last + 2).clamp(max=side)))
    (left, right), (top, bottom) = ends
    windows = torch.stack([left, top, right, bottom], dim=1)
    return (windows * marked.flatten(1).amax(dim=1, keepdim=True)).cpu().numpy()


def _moved_to_host(maps: Tensor, windows: npt.NDArray[np.int64]) -> list[Tensor]:
    """Cut the windows out of ``(N, h, w)`` maps and move them in one transfer."""
    pieces = [
        one[top:bottom, left:right]
        for one, (left, top, right, bottom) in zip(maps, windows.tolist(), strict=True)
    ]
    if not pieces:
        return []
    packed = torch.cat([piece.flatten() for piece in pieces]).cpu().float()
    flat = packed.split([piece.numel() for piece in pieces])
    return [part.view(piece.shape) for part, piece in zip(flat, pieces, strict=True)]


def _resized(piece: Tensor, factor: int) -> npt.NDArray[np.bool_]:
    if not piece.numel():
        return np.zeros((0, 0), dtype=np.bool_)
    size = (factor * piece.shape[0], factor * piece.shape[1])
    pixels = F.interpolate(piece[None, None], size=size, mode="bilinear", align_corners=False)
    return (pixels[0, 0] > 0).numpy()
