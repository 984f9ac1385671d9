"""From overlapping masks to one label map."""

from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from nucsam_monai.inferers.nucleus_masks import NucleusMasks
from nucsam_monai.utils.instances import connected_components


def paint(
    masks: NucleusMasks,
    image_size: tuple[int, int],
    *,
    largest_component: bool = False,
    fill_holes: bool = False,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Draw every mask where no better one lies (PromptNucSeg, released procedure).

    Args:
        masks: the best first.
        image_size: height and width in pixels.
        largest_component: keep only the largest 8-connected part of what can be seen of a mask; the rest is left
            to the worse masks.
        fill_holes: fill the holes of a mask, background that is 4-connected to nothing outside of it.

    Returns:
        ``(H, W)`` int32 label map, 0 = background, and the indices ``(n,)`` of the masks of which anything can
        be seen, in the order of their prompts: the nucleus with the id k is the mask ``visible[k - 1]``.
    """
    by_prompt = np.argsort(masks.prompts, kind="stable")
    ids = np.empty(len(masks), dtype=np.int32)
    ids[by_prompt] = np.arange(1, len(masks) + 1)
    canvas = np.zeros(image_size, dtype=np.int32)
    if largest_component or fill_holes:
        _paint_clean(canvas, masks, ids, largest_component, fill_holes)
    else:
        for mask, (x0, y0, x1, y1), label in _with_boxes(masks, ids, step=-1):
            np.copyto(canvas[y0:y1, x0:x1], label, where=mask)
    seen = np.zeros(len(masks) + 1, dtype=np.bool_)
    seen[canvas.ravel()] = True
    if not seen[1:].all():
        seen[0] = False
        canvas = np.where(seen, np.cumsum(seen), 0).astype(np.int32)[canvas]
    return canvas, by_prompt[seen[1:]]


def _paint_clean(
    canvas: NDArray[np.int32],
    masks: NucleusMasks,
    ids: NDArray[np.int32],
    largest_component: bool,
    fill_holes: bool,
) -> None:
    """Draw the best mask first: what a mask gives up is only known once all better ones are drawn."""
    for mask, (x0, y0, x1, y1), label in _with_boxes(masks, ids, step=1):
        place = canvas[y0:y1, x0:x1]
        visible = (_without_holes(mask) if fill_holes else mask) & (place == 0)
        if largest_component:
            visible = _largest_part(visible)
        np.copyto(place, label, where=visible)


def _with_boxes(
    masks: NucleusMasks, ids: NDArray[np.int32], step: int
) -> Iterator[tuple[NDArray[np.bool_], list[int], int]]:
    """Yield each mask with its box and id, from the first (step 1) or from the last (step -1) on."""
    return zip(masks.masks[::step], masks.boxes[::step].tolist(), ids[::step].tolist(), strict=True)


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
