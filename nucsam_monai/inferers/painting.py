"""From overlapping masks to one label map."""

import cv2
import numpy as np
from numpy.typing import NDArray

from nucsam_monai.inferers.nucleus_masks import NucleusMasks
from nucsam_monai.utils.components import connected_components


def paint(
    masks: NucleusMasks,
    image_size: tuple[int, int],
    *,
    largest_component: bool = False,
    fill_holes: bool = False,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Draw every mask where no better one lies.

    That is what painting from the worst mask to the best gives. In this order a mask is cleaned once it is known
    which of its pixels can be seen, and what it gives up is left to the worse ones.

    Args:
        masks: the best first.
        image_size: height and width in pixels.
        largest_component: keep only the largest 8-connected part of what can be seen of a mask.
        fill_holes: fill the holes of a mask, background that is 4-connected to nothing outside of it.

    Returns:
        ``(H, W)`` int32 label map, 0 = background, and the indices ``(n,)`` of the masks of which anything can
        be seen, in the order of their prompts: the nucleus with the id k is the mask ``visible[k - 1]``.
    """
    by_prompt = np.argsort(masks.prompts, kind="stable")
    ids = np.empty(len(masks), dtype=np.int32)
    ids[by_prompt] = np.arange(1, len(masks) + 1)
    canvas = np.zeros(image_size, dtype=np.int32)
    seen = np.zeros(len(masks) + 1, dtype=np.bool_)
    for mask, (x0, y0, x1, y1), label in zip(masks.masks, masks.boxes.tolist(), ids.tolist(), strict=True):
        place = canvas[y0:y1, x0:x1]
        visible = (_without_holes(mask) if fill_holes else mask) & (place == 0)
        if largest_component:
            visible = _largest_part(visible)
        if visible.any():
            np.copyto(place, label, where=visible)
            seen[label] = True
    if not seen[1:].all():
        canvas = np.where(seen, np.cumsum(seen), 0).astype(np.int32)[canvas]
    return canvas, by_prompt[seen[1:]]


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    parts = connected_components(mask)
    areas = np.bincount(parts.ravel())
    return mask if len(areas) <= 2 else parts == 1 + np.argmax(areas[1:])


def _without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    background = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    outside = cv2.connectedComponents(background, connectivity=4)[1]
    return (outside != outside[0, 0])[1:-1, 1:-1]
