"""The masks of all tiles, each cut out by its box."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.networks.sam.cropped_masks import CroppedMasks


@dataclass(frozen=True)
class NucleusMasks:
    """N candidate masks of nuclei of one image, several of them perhaps of the same nucleus.

    Attributes:
        boxes: ``(N, 4)`` int64 as (x_min, y_min, x_max, y_max) in pixels of the image, the maxima exclusive.
        masks: N boolean arrays ``(y_max - y_min, x_max - x_min)``.
        areas: ``(N,)`` int64, pixels of each mask.
        iou: ``(N,)`` float32, predicted intersection over union.
        prompts: ``(N,)`` int64, the prompt that each mask comes from.
        class_ids: ``(N,)`` int64.
        cut: ``(N,)`` bool, whether the mask comes so close to the edge of its tile that it is presumably cut.
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
        return NucleusMasks(
            self.boxes[rows],
            [self.masks[row] for row in rows.tolist()],
            self.areas[rows],
            self.iou[rows],
            self.prompts[rows],
            self.class_ids[rows],
            self.cut[rows],
        )


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
    """Return the masks of all parts, one after the other."""
    parts = [NO_MASKS, *parts]
    return NucleusMasks(
        boxes=np.concatenate([part.boxes for part in parts]),
        masks=[mask for part in parts for mask in part.masks],
        areas=np.concatenate([part.areas for part in parts]),
        iou=np.concatenate([part.iou for part in parts]),
        prompts=np.concatenate([part.prompts for part in parts]),
        class_ids=np.concatenate([part.class_ids for part in parts]),
        cut=np.concatenate([part.cut for part in parts]),
    )


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
    """Move masks from their tiles into the image; empty ones are left out.

    A mask is presumably cut where at most ``edge_px`` pixels lie between its box and an edge of its tile that
    is not an edge of the image (PromptNucSeg, released procedure).

    Args:
        cropped: N masks in pixels of their tiles.
        origins: ``(N, 2)`` first pixel as (x, y) of each mask's tile.
        prompts: ``(N,)`` the prompt of each mask.
        class_ids: ``(N,)`` the class of each mask.
        tile_px: side of a tile.
        image_size: height and width in pixels.
        edge_px: see above.
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
