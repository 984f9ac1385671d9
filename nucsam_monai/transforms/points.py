"""Prompts by hand: the points of a file become a part of the item."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from nucsam_monai.io import points_by_id, read_points, require_inside


class ExpertPointsd(MapTransform):
    """Add the points that a file holds for an image; an image that it does not name stays without.

    The item gains ``points`` ``(K, 2)`` float32 as (x, y) in pixels and ``point_labels`` ``(K,)`` int64 (1 nucleus,
    0 background).

    Args:
        keys: the image ``(C, H, W)``, still at its original size.
        file: see :func:`nucsam_monai.io.read_points`.
        items: all images, each with ``image`` (path) and ``id``.

    Raises:
        DatasetError: the file is missing, damaged, or names an image that is not among ``items``; when called, a
            point lies outside of its image.
    """

    def __init__(self, keys: KeysCollection, file: str | Path, items: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(keys)
        self.points = points_by_id(read_points(file), items)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its points."""
        item = dict(data)
        own = self.points.get(item["id"])
        if own is None:
            return item
        for key in self.key_iterator(item):
            height, width = item[key].shape[-2:]
            require_inside(own, height, width, item["id"])
        item["points"] = torch.tensor([point[:2] for point in own], dtype=torch.float32).reshape(-1, 2)
        item["point_labels"] = torch.tensor([point.label for point in own], dtype=torch.int64)
        return item
