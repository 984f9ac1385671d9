"""From overlapping masks with scores to one label map."""

from collections.abc import Iterable, Sequence

import numpy as np


def paint_masks(
    masks: Iterable[np.ndarray], scores: Sequence[float], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Paint masks over each other in the given order, so that the last one wins where they overlap.

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
