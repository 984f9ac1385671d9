"""The targets of a point detector: centroid and class of every nucleus, and the mask of all."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_numpy

from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from nucsam_monai.utils.prediction import prediction_from_instances


class NucleusCentroidsd(MapTransform):
    """Add centroid and class of every nucleus, and the mask of all.

    Placed behind the augmentation, it needs no points that follow crops and warps. Class ids are looked up
    in the item's ``classes_key``, ``{instance id: class id}``; items without it have one class, 0. A dataset's
    file becomes such a mapping by MONAI's ``Lambdad`` with ``nucsam_monai.data.label_files.read_classes``.

    Args:
        keys: the instance map ``(1, H, W)``; whole numbers, also in a floating-point type.
        classes_key: key of the classes.

    The item gains ``points`` ``(G, 2)`` float32 as (x, y) in pixels, ordered by instance id,
    ``point_classes`` ``(G,)`` int64, and ``mask`` ``(1, H, W)`` float32.

    Raises:
        DatasetError: when called, a nucleus without a class.
        ConfigurationError: when called, classes that are still the path of a file.
    """

    def __init__(self, keys: KeysCollection = "instances", classes_key: str = "classes") -> None:
        super().__init__(keys)
        self.classes_key = classes_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the targets added."""
        item = dict(data)
        for key in self.key_iterator(item):
            instances = np.rint(convert_to_numpy(item[key])[0]).astype(np.int64)
            points, ids = nucleus_centroids(instances)
            classes = class_of_each(ids.tolist(), item.get(self.classes_key))
            item["points"] = torch.from_numpy(points)
            item["point_classes"] = torch.tensor(classes, dtype=torch.int64)
            item["mask"] = torch.from_numpy(instances[None] > 0).float()
        return item


def nucleus_centroids(instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre of mass of each nucleus, or its pixel nearest to it where that lies outside.

    Args:
        instances: ``(H, W)`` integers, 0 = background.

    Returns:
        ``(G, 2)`` float32 as (x, y) in pixels, and the ``(G,)`` instance ids, rising.

    Example:
        >>> nucleus_centroids(np.array([[0, 5, 5, 0]]))
        (array([[1.5, 0. ]], dtype=float32), array([5], dtype=int32))
    """
    table = prediction_from_instances(instances).table
    points = np.stack([table["centroid_x_px"], table["centroid_y_px"]], axis=1)
    columns, rows = np.rint(points).astype(np.int64).T
    for row in np.flatnonzero(instances[rows, columns] != table["id"]):
        x0, x1 = table["box_x_min_px"][row], table["box_x_max_px"][row]
        y0, y1 = table["box_y_min_px"][row], table["box_y_max_px"][row]
        y, x = np.nonzero(instances[y0:y1, x0:x1] == table["id"][row])
        pixels = np.stack([x + x0, y + y0], axis=1)
        points[row] = pixels[np.square(pixels - points[row]).sum(axis=1).argmin()]
    return points.astype(np.float32), table["id"]


def class_of_each(ids: list[int], classes: Mapping[int, int] | str | None) -> list[int]:
    """Return the class ids of nuclei; without classes every nucleus is of class 0.

    Raises:
        DatasetError: a nucleus without a class.
        ConfigurationError: classes that are still the path of a file.
    """
    if classes is None:
        return [0] * len(ids)
    if not isinstance(classes, Mapping):
        raise ConfigurationError(
            f"classes: found {classes!r}, expected {{instance id: class id}}. Read the file first, by Lambdad with "
            "nucsam_monai.data.label_files.read_classes."
        )
    missing = [number for number in ids if number not in classes]
    if missing:
        raise DatasetError(
            f"instances: {len(missing)} of {len(ids)} nuclei have no class, the first is {missing[0]}. Validate the "
            "dataset."
        )
    return [classes[number] for number in ids]
