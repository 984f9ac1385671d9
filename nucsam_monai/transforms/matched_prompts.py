"""The prompts that CFR-SAM's second stage trains on: what the first stage found, or the ground truth."""

from collections.abc import Hashable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_numpy
from numpy.typing import NDArray

from nucsam_monai.transforms.instances import nucleus_points
from nucsam_monai.transforms.nucleus_prompts import jittered_boxes, own_boxes, random_points
from nucsam_monai.utils.errors import ConfigurationError

TrainingPrompts = Literal["predicted", "gt_random", "gt_centroid", "mixed"]
"""Where prompts come from: the first stage; a random pixel of each nucleus; its centroid; the first stage, and a
random pixel for nuclei that it missed."""

USES_FOUND: tuple[TrainingPrompts, ...] = ("predicted", "mixed")

_POINT_LABELS, _BOX_LABELS = (1,), (2, 3)


class MatchedPromptsd(Randomizable, MapTransform):
    """Prompt some nuclei of a crop, each by one point or box, as CFR-SAM's second stage is trained.

    A point that the first stage found belongs to the instance of the pixel that it lies in; of several points of
    one nucleus the one with the highest score counts. Nuclei without a prompt are not trained on.

    Args:
        keys: the instance map ``(1, H, W)``; of several only the last one's prompts stay.
        max_nuclei: nuclei that are chosen at random, or all where there are no more; the paper has 25.
        prompts: see :data:`TrainingPrompts`; ``predicted`` and ``mixed`` need the item's ``found_points`` and
            ``found_scores`` of :class:`~nucsam_monai.transforms.AugmentWithFoundd`.
        prompt: ``point``, or ``box``: the found box around the nucleus' point, or in place of its centroid the
            nucleus' own box, and in place of a random pixel that box with its sides moved at random.

    Raises:
        ConfigurationError: an unknown choice or fewer than one nucleus; or, when called, no found points where they
            are needed.

    The item gains ``points`` ``(Z, 1, 2)`` float32 or, with boxes, ``(Z, 2, 2)`` two opposite corners,
    cut to the crop, ``point_labels`` int64 of the same length as SAM names them, and ``masks`` ``(Z, H, W)`` uint8.
    """

    def __init__(
        self,
        keys: KeysCollection = "instances",
        max_nuclei: int = 25,
        *,
        prompts: TrainingPrompts = "predicted",
        prompt: Literal["point", "box"] = "point",
    ) -> None:
        MapTransform.__init__(self, keys)
        if prompts not in get_args(TrainingPrompts):
            raise ConfigurationError(
                f"train_prompts '{prompts}': expected one of {', '.join(get_args(TrainingPrompts))}."
            )
        if prompt not in ("point", "box") or max_nuclei < 1:
            raise ConfigurationError(
                f"prompt '{prompt}' and max_nuclei {max_nuclei}: expected 'point' or 'box', and 1 or more."
            )
        self.max_nuclei = max_nuclei
        self.prompts = prompts
        self.prompt = prompt

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with prompts and masks added; found points are taken out."""
        item = dict(data)
        found = item.pop("found_points", None), item.pop("found_scores", None)
        for key in self.key_iterator(item):
            instances = np.rint(convert_to_numpy(item[key])[0]).astype(np.int64)  # warped maps are floats
            ids = np.unique(instances[instances > 0])
            points = self._of_truth(instances)
            prompted = np.arange(len(ids))
            if self.prompts in USES_FOUND:
                if found[0] is None or found[1] is None:
                    raise ConfigurationError(
                        f"train_prompts '{self.prompts}': expected found_points of the first stage in the item, found "
                        f"{sorted(map(str, item))}. Let the first stage look for points before the second one trains."
                    )
                matched, rows = match_found(convert_to_numpy(found[0]), convert_to_numpy(found[1]), instances)
                slots = np.searchsorted(ids, matched)
                points[slots] = self._prompts_of(convert_to_numpy(found[0])[rows])
                prompted = slots if self.prompts == "predicted" else prompted
            if self.prompt == "box":
                height, width = instances.shape
                points = points.clip(-0.5, np.array([width - 0.5, height - 0.5], dtype=np.float32))
            chosen = prompted[self.R.permutation(len(prompted))[: self.max_nuclei]]
            labels = _POINT_LABELS if self.prompt == "point" else _BOX_LABELS
            item["points"] = torch.from_numpy(points[chosen])
            item["point_labels"] = torch.tensor([labels] * len(chosen), dtype=torch.int64).reshape(
                -1, len(labels)
            )
            masks = instances[None] == ids[chosen][:, None, None]
            item["masks"] = torch.from_numpy(masks.astype(np.uint8))
        return item

    def _of_truth(self, instances: NDArray[Any]) -> NDArray[np.float32]:
        """Return a prompt of every nucleus from the ground truth, in the order of the ids."""
        if self.prompt == "box":
            boxes = own_boxes(instances)
            if self.prompts == "gt_centroid":
                return boxes
            return jittered_boxes(boxes, self.R)
        points = (
            nucleus_points(instances) if self.prompts == "gt_centroid" else random_points(instances, self.R)
        )
        return points[:, None]

    def _prompts_of(self, found: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the points ``(n, 1, 2)`` or boxes ``(n, 2, 2)`` of found nuclei ``(n, k, 2)``."""
        if self.prompt == "point":
            return found[:, :1]
        if found.shape[1] == 1:
            raise ConfigurationError(
                "prompt 'box': the first stage found points without sizes. Train it with boxes as well."
            )
        return np.stack([found[:, 1:].min(axis=1), found[:, 1:].max(axis=1)], axis=1)


def match_found(
    points: NDArray[np.float32], scores: NDArray[np.float32], instances: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Find the best point of every nucleus that has one.

    Args:
        points: ``(n, k, 2)`` as (x, y) in pixels; the first of each row counts.
        scores: ``(n,)``; of equal ones the first wins.
        instances: ``(H, W)`` label map; 0 is background.

    Returns:
        The ids ``(m,)`` of nuclei with a point, rising, and the row ``(m,)`` of the best point of each.

    Example:
        >>> found = np.array([[[0, 0]], [[1.2, 0]], [[2, 0]]], dtype=np.float32)
        >>> match_found(found, np.array([0.9, 0.5, 0.8], dtype=np.float32), np.array([[0, 7, 7]]))
        (array([7]), array([2]))
    """
    height, width = instances.shape
    columns, rows = np.floor(points[:, 0] + 0.5).astype(np.int64).T
    inside = np.flatnonzero((columns >= 0) & (columns < width) & (rows >= 0) & (rows < height))
    best_first = inside[np.argsort(-scores[inside], kind="stable")]
    owners = instances[rows[best_first], columns[best_first]]
    best_first, owners = best_first[owners > 0], owners[owners > 0]
    ids, first = np.unique(owners, return_index=True)
    return ids, best_first[first]
