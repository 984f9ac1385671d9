"""Place the masks of all tiles in the image, keep one per nucleus, and paint them into one label map."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms

from nucsam_monai.networks.sam.cropped_masks import CroppedMasks
from nucsam_monai.utils.instances import connected_components

SuppressionRule = Literal["box", "mask", "smaller_mask"]
"""``box`` compares the boxes of two nuclei, as PromptNucSeg does, ``mask`` their pixels, both by intersection over
union; ``smaller_mask`` asks which share of the smaller nucleus lies in the other one."""


@dataclass(frozen=True)
class NucleusMasks:
    """Hold N candidate masks of nuclei of one image; several may show the same nucleus.

    Attributes:
        boxes: ``(N, 4)`` int64 as (x_min, y_min, x_max, y_max) in pixels of the image, the maxima exclusive.
        masks: N boolean arrays ``(y_max - y_min, x_max - x_min)``.
        areas: ``(N,)`` int64, pixels of each mask.
        iou: ``(N,)`` float32, predicted intersection over union.
        prompts: ``(N,)`` int64, the prompt that each mask comes from.
        class_ids: ``(N,)`` int64.
        cut: ``(N,)`` bool, whether the mask is so close to the edge of its tile that it is probably cut off.
    """

    boxes: NDArray[np.int64]
    masks: list[NDArray[np.bool_]]
    areas: NDArray[np.int64]
    iou: NDArray[np.float32]
    prompts: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    cut: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.masks)

    def take(self, rows: NDArray[np.int64]) -> "NucleusMasks":
        """Return the masks with the indices ``rows``, in their order."""
        arrays = {name: getattr(self, name)[rows] for name in _ARRAYS}
        return NucleusMasks(masks=[self.masks[row] for row in rows.tolist()], **arrays)


_ARRAYS = tuple(one.name for one in fields(NucleusMasks) if one.name != "masks")

NO_MASKS = NucleusMasks(
    boxes=np.zeros((0, 4), dtype=np.int64),
    masks=[],
    areas=np.zeros(0, dtype=np.int64),
    iou=np.zeros(0, dtype=np.float32),
    prompts=np.zeros(0, dtype=np.int64),
    class_ids=np.zeros(0, dtype=np.int64),
    cut=np.zeros(0, dtype=np.bool_),
)


def join_masks(parts: Sequence[NucleusMasks]) -> NucleusMasks:
    """Concatenate masks."""
    parts = [NO_MASKS, *parts]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
    return NucleusMasks(masks=[mask for part in parts for mask in part.masks], **arrays)


def place_masks(
    cropped: CroppedMasks,
    origins: NDArray[np.int64],
    prompts: NDArray[np.int64],
    class_ids: NDArray[np.int64],
    *,
    tile_px: int,
    image_size: tuple[int, int],
    edge_px: int,
) -> NucleusMasks:
    """Move masks from their tiles into the image; empty masks are left out.

    A mask counts as cut off if at most ``edge_px`` pixels lie between its box and an edge of its tile that is not an
    edge of the image (PromptNucSeg, released procedure).

    Args:
        cropped: N masks in pixels of their tiles.
        origins: ``(N, 2)`` first pixel as (x, y) of each mask's tile.
        prompts: ``(N,)`` prompt of each mask.
        class_ids: ``(N,)`` class of each mask.
        tile_px: side length of a tile.
        image_size: height and width in pixels.
        edge_px: width of the margin, see above.
    """
    drawn = np.flatnonzero(cropped.areas)
    boxes, first = cropped.boxes[drawn], origins[drawn]
    end = first + tile_px
    cut_before = (boxes[:, :2] <= edge_px) & (first > 0)
    cut_after = (tile_px - boxes[:, 2:] <= edge_px) & (end < np.array(image_size[::-1]))
    return NucleusMasks(
        boxes=boxes + np.tile(first, 2),
        masks=[cropped.masks[row] for row in drawn.tolist()],
        areas=cropped.areas[drawn],
        iou=cropped.iou[drawn],
        prompts=prompts[drawn],
        class_ids=class_ids[drawn],
        cut=np.any(cut_before | cut_after, axis=1),
    )


def one_mask_per_prompt(masks: NucleusMasks) -> NucleusMasks:
    """Keep the mask with the highest predicted IoU of each prompt (PromptNucSeg, released procedure).

    Masks that are cut off are taken only for prompts without another mask, so that nuclei larger than the overlap of
    the tiles are not lost. If IoUs are equal, the larger mask wins, then the first.

    Returns:
        One mask for each prompt that has a mask, in the order of the prompts.
    """
    order = np.lexsort((-masks.areas, -masks.iou, masks.cut, masks.prompts))
    _, first = np.unique(masks.prompts[order], return_index=True)
    return masks.take(order[first])


def best_first(masks: NucleusMasks) -> NucleusMasks:
    """Sort the masks by descending predicted IoU, ties by prompt."""
    return masks.take(np.lexsort((masks.prompts, -masks.iou)))


def suppress_duplicates(masks: NucleusMasks, threshold: float, rule: SuppressionRule = "box") -> NucleusMasks:
    """Drop every mask that overlaps a better one, regardless of class: non-maximum suppression.

    Boxes of touching nuclei may overlap by more than ``threshold`` although the nuclei do not. With ``box`` one of two
    elongated diagonal neighbours is then lost, with ``mask`` both remain. If a large nucleus was prompted several
    times, some masks may show only parts of it; only ``smaller_mask`` recognises these as duplicates.

    Args:
        masks: masks sorted by :func:`best_first`.
        threshold: overlap above which the worse mask is dropped.
        rule: how the overlap is measured.
    """
    if rule != "box":
        return masks.take(_suppress_by_masks(masks, threshold, of_smaller=rule == "smaller_mask"))
    # The ranks as scores, since they are unique: equal scores would leave the choice to the sorting.
    ranks = torch.arange(len(masks), 0, -1, dtype=torch.float64)
    # In float64, as a quotient of whole numbers is then on the same side of the threshold everywhere.
    kept = nms(torch.from_numpy(masks.boxes).double(), ranks, threshold)
    return masks.take(kept.numpy())


def _suppress_by_masks(masks: NucleusMasks, threshold: float, *, of_smaller: bool) -> NDArray[np.int64]:
    first, second, shared = _overlapping_boxes(masks.boxes)
    # The masks share at most what the boxes share; most pairs need no look at their pixels.
    smaller = np.minimum(masks.areas[first], masks.areas[second])
    both = masks.areas[first] + masks.areas[second]
    most = np.minimum(shared, smaller)
    candidates = np.flatnonzero(most > threshold * (smaller if of_smaller else both - most) * (1 - 1e-9))
    kept = np.ones(len(masks), dtype=np.bool_)
    for pair in candidates.tolist():
        better, worse = int(first[pair]), int(second[pair])
        if kept[better] and kept[worse]:
            common = _common_pixels(masks, better, worse)
            kept[worse] = common / (smaller[pair] if of_smaller else both[pair] - common) <= threshold
    return np.flatnonzero(kept)


def _overlapping_boxes(
    boxes: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return all pairs i < j of boxes that share pixels, sorted by i and then j, and how many they share."""
    by_start = np.argsort(boxes[:, 0], kind="stable")
    starts = boxes[by_start, 0]
    # In the order of their left sides a box can only meet those that begin before it ends.
    ends = np.searchsorted(starts, boxes[by_start, 2], side="left")
    positions = np.arange(len(boxes))
    counts = np.maximum(ends - positions - 1, 0)
    left = np.repeat(positions, counts)
    right = left + 1 + np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)
    one, other = by_start[left], by_start[right]
    first, second = np.minimum(one, other), np.maximum(one, other)
    sides = np.minimum(boxes[first, 2:], boxes[second, 2:]) - np.maximum(boxes[first, :2], boxes[second, :2])
    meet = (sides > 0).all(axis=1)
    first, second, shared = first[meet], second[meet], sides[meet].prod(axis=1)
    order = np.lexsort((second, first))
    return first[order], second[order], shared[order]


def _common_pixels(masks: NucleusMasks, one: int, other: int) -> int:
    x0, y0 = np.maximum(masks.boxes[one, :2], masks.boxes[other, :2]).tolist()
    x1, y1 = np.minimum(masks.boxes[one, 2:], masks.boxes[other, 2:]).tolist()
    pieces = []
    for index in (one, other):
        left, top = masks.boxes[index, :2].tolist()
        pieces.append(masks.masks[index][y0 - top : y1 - top, x0 - left : x1 - left])
    return int(np.count_nonzero(pieces[0] & pieces[1]))


def paint(
    masks: NucleusMasks,
    image_size: tuple[int, int],
    *,
    largest_component: bool = False,
    fill_holes: bool = False,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Paint masks into a label map; where they overlap, the better mask wins (PromptNucSeg, released procedure).

    Args:
        masks: masks sorted by :func:`best_first`.
        image_size: height and width in pixels.
        largest_component: keep only the largest 8-connected visible part of a mask; its other pixels go to worse
            masks.
        fill_holes: fill the holes of a mask.

    Returns:
        ``(H, W)`` int32 label map, 0 = background, and the indices ``visible`` ``(n,)`` of the masks with visible
        pixels in the order of their prompts: the nucleus with id k is the mask ``visible[k - 1]``.
    """
    by_prompt = np.argsort(masks.prompts, kind="stable")
    ids = np.empty(len(masks), dtype=np.int32)
    ids[by_prompt] = np.arange(1, len(masks) + 1)
    canvas = np.zeros(image_size, dtype=np.int32)
    # What a mask gives up is only known once all better ones are drawn.
    for mask, (x0, y0, x1, y1), label in zip(masks.masks, masks.boxes.tolist(), ids.tolist(), strict=True):
        place = canvas[y0:y1, x0:x1]
        visible = (_without_holes(mask) if fill_holes else mask) & (place == 0)
        if largest_component:
            visible = _largest_part(visible)
        np.copyto(place, label, where=visible)
    seen = np.zeros(len(masks) + 1, dtype=np.bool_)
    seen[canvas.ravel()] = True
    if not seen[1:].all():
        seen[0] = False
        canvas = np.where(seen, np.cumsum(seen), 0).astype(np.int32)[canvas]
    return canvas, by_prompt[seen[1:]]


def paint_masks(
    masks: Iterable[np.ndarray], scores: Sequence[float], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Paint whole masks over each other in the given order, so that the last one wins where they overlap.

    Args:
        masks: ``(H, W)`` boolean masks, from the lowest to the highest score; one at a time is kept in memory.
        scores: one per mask.
        shape: height and width.

    Returns:
        ``(H, W)`` int32 label map with ids 1..n in the order of the masks, without those that are empty or
        painted over completely; and the ``(H, W)`` float32 score of each pixel's mask, 0 in the background.

    Example:
        >>> low, high = np.array([[True, True, False]]), np.array([[False, True, True]])
        >>> paint_masks([low, high], [0.5, 0.75], (1, 3))
        (array([[1, 2, 2]], dtype=int32), array([[0.5 , 0.75, 0.75]], dtype=float32))
    """
    painted = np.zeros(shape, dtype=np.int32)
    for number, mask in enumerate(masks, start=1):
        painted[mask] = number
    visible = np.bincount(painted.ravel(), minlength=len(scores) + 1) > 0
    visible[0] = False
    ids = np.cumsum(visible, dtype=np.int32) * visible
    return ids[painted].astype(np.int32), np.asarray([0.0, *scores], dtype=np.float32)[painted]


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    parts = connected_components(mask)
    areas = np.bincount(parts.ravel())
    return mask if len(areas) <= 2 else parts == 1 + np.argmax(areas[1:])


def _without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    background = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    outside = cv2.connectedComponents(background, connectivity=4)[1]
    return (outside != outside[0, 0])[1:-1, 1:-1]
