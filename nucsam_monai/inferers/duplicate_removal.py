"""One mask per nucleus: the masks of the same prompt, and prompts of the same nucleus."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms

from nucsam_monai.inferers.nucleus_masks import NucleusMasks

SuppressionRule = Literal["box", "mask", "smaller_mask"]
"""``box`` compares the boxes of two nuclei, as PromptNucSeg does, ``mask`` their pixels, both by intersection over
union; ``smaller_mask`` asks which share of the smaller nucleus lies in the other one."""


def one_mask_per_prompt(masks: NucleusMasks) -> NucleusMasks:
    """Keep the mask with the highest predicted IoU of each prompt (PromptNucSeg, released procedure).

    Masks that are presumably cut are taken only for prompts that have no other, so that no nucleus is lost
    because it is larger than the tiles' overlap. Of equal IoUs the larger mask wins, then the first.

    Returns:
        One mask for each prompt that has any, in the order of the prompts.
    """
    order = np.lexsort((-masks.areas, -masks.iou, masks.cut, masks.prompts))
    _, first = np.unique(masks.prompts[order], return_index=True)
    return masks.take(order[first])


def best_first(masks: NucleusMasks) -> NucleusMasks:
    """Sort the masks by falling predicted IoU, and equal ones by prompt."""
    return masks.take(np.lexsort((masks.prompts, -masks.iou)))


def suppress_duplicates(masks: NucleusMasks, threshold: float, rule: SuppressionRule = "box") -> NucleusMasks:
    """Drop every mask that overlaps a better one, whatever its class: non-maximum suppression.

    Boxes of touching nuclei may overlap more than ``threshold`` although the nuclei do not: by boxes one of two
    slender diagonal neighbours is lost, by masks both remain. A large nucleus that was prompted several times may get
    masks of its parts, whose union with the whole is large: only ``smaller_mask`` takes them for duplicates.

    Args:
        masks: sorted by :func:`best_first`.
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
