"""Make training targets of instance maps: masks, distances, centroids, classes and sizes of nuclei."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import ComputeHoVerMaps, MapTransform
from monai.utils import convert_to_dst_type, convert_to_numpy, convert_to_tensor
from scipy.ndimage import find_objects

from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from nucsam_monai.utils.prediction import prediction_from_instances


class ForegroundMaskd(MapTransform):
    """Add the binary mask of all nuclei, float32 of the instance map's shape ``(1, H, W)``.

    Args:
        keys: the instance map.
        output_key: key of the mask.
        classes: the names of the classes of domains that have one mask per class ``(C, H, W)``. Their items hold
            ``classes``, ``{instance id: class id}``.

    Raises:
        DatasetError: when called, a nucleus of such a domain has no class.
    """

    def __init__(
        self,
        keys: KeysCollection = "instances",
        output_key: str = "label",
        classes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(keys)
        self.output_key = output_key
        self.classes = dict(classes or {})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the mask added."""
        item = dict(data)
        names = self.classes.get(str(item.get("domain")), ())
        for key in self.key_iterator(item):
            mask = item[key] > 0
            if names:
                mask = class_masks(whole_ids(item[key]), item.get("classes") or {}, len(names))
            item[self.output_key] = convert_to_dst_type(mask, item[key], dtype=torch.float32)[0]
        return item


class NucleusDistanced(MapTransform):
    """Add the distance map that separates touching nuclei, float32 ``(1, H, W)``; see :func:`nucleus_distance`.

    Being relative to each nucleus, the map is the same at every magnification: it may be computed once per image,
    kept, and be cropped and resized with it.

    Args:
        keys: the instance map ``(1, H, W)``.
        output_key: key of the map.
    """

    def __init__(self, keys: KeysCollection = "instances", output_key: str = "distance") -> None:
        super().__init__(keys)
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the map added."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[self.output_key] = torch.from_numpy(nucleus_distance(whole_ids(item[key])))[None]
        return item


class DistanceTargetd(MapTransform):
    """Add the distance map to the training target, as its last channel.

    A map that was made before the image was cropped is taken; where an item has none, it is made of the instances as
    they are now.

    Args:
        keys: the target ``(n, H, W)``.
        distance_key: key of the map.
        instances_key: key of the instance map ``(1, H, W)``.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        distance_key: str = "distance",
        instances_key: str = "instances",
    ) -> None:
        super().__init__(keys)
        self.distance_key = distance_key
        self.make = NucleusDistanced(instances_key, distance_key)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``(n + 1, H, W)`` targets."""
        item = dict(data)
        distance = (item if self.distance_key in item else self.make(item))[self.distance_key]
        for key in self.key_iterator(item):
            item[key] = torch.cat([convert_to_tensor(item[key], track_meta=False), distance])
        return item


def nucleus_distance(instances: np.ndarray) -> np.ndarray:
    """Return each pixel's relative depth in its nucleus: 1 at the deepest pixel, 0 outside.

    This is the Euclidean distance to the nearest pixel outside of the nucleus, divided by its maximum in that nucleus
    (Naylor et al., "Segmentation of Nuclei in Histopathology Images by Deep Regression of the Distance Map", 2019,
    who leave out the division). The image's border does not bound a nucleus: what is cut there continues.

    Args:
        instances: ``(H, W)`` integers, 0 = background.

    Returns:
        ``(H, W)`` float32 in [0, 1].

    Example:
        >>> nucleus_distance(np.array([[0, 0, 0, 0, 0], [0, 7, 7, 7, 0]])).round(1)[1]
        array([0., 1., 1., 1., 0.], dtype=float32)
    """
    distance = np.zeros(instances.shape, dtype=np.float32)
    height, width = instances.shape
    for index, box in enumerate(find_objects(instances)):
        if box is None:
            continue
        (y0, y1), (x0, x1) = ((axis.start, axis.stop) for axis in box)
        around = slice(max(0, y0 - 1), min(height, y1 + 1)), slice(max(0, x0 - 1), min(width, x1 + 1))
        nucleus = np.asarray(instances[around] == index + 1, dtype=np.uint8)
        if nucleus.all():  # the nucleus fills the image
            squared = np.ones(nucleus.shape, dtype=np.float32)
        else:
            # OpenCV's last bit changes from call to call; squares of distances between pixels are whole numbers.
            squared = np.rint(cv2.distanceTransform(nucleus, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) ** 2)
        distance[around] = np.where(nucleus, np.sqrt(squared / squared.max()), distance[around])
    return distance


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
            instances = whole_ids(item[key])
            points, ids = nucleus_centroids(instances)
            classes = class_of_each(ids.tolist(), item.get(self.classes_key))
            item["points"] = torch.from_numpy(points)
            item["point_classes"] = torch.tensor(classes, dtype=torch.int64)
            item["mask"] = torch.from_numpy(instances[None] > 0).float()
        return item


def nucleus_centroids(instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre of mass of each nucleus, or its nearest pixel if the centre lies outside.

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
        points[row] = _pixel_nearest_to_centroid(instances, table[row])
    return points.astype(np.float32), table["id"]


def nucleus_points(instances: np.ndarray) -> np.ndarray:
    """Return the pixel (x, y) of each nucleus that is nearest to its centroid, ``(n, 2)`` float32 in order of the ids.

    Example:
        >>> nucleus_points(np.array([[0, 5, 5, 5]]))
        array([[2., 0.]], dtype=float32)
    """
    table = prediction_from_instances(instances).table
    points = [_pixel_nearest_to_centroid(instances, nucleus) for nucleus in table]
    return np.array(points, dtype=np.float32).reshape(-1, 2)


def _pixel_nearest_to_centroid(instances: np.ndarray, nucleus: np.void) -> tuple[int, int]:
    """Return the pixel (x, y) of a nucleus, given as its row of the table, that is nearest to its centroid."""
    x0, x1 = nucleus["box_x_min_px"], nucleus["box_x_max_px"]
    y0, y1 = nucleus["box_y_min_px"], nucleus["box_y_max_px"]
    ys, xs = np.nonzero(instances[y0:y1, x0:x1] == nucleus["id"])
    away = (xs + x0 - nucleus["centroid_x_px"]) ** 2 + (ys + y0 - nucleus["centroid_y_px"]) ** 2
    nearest = int(np.argmin(away))
    return int(xs[nearest] + x0), int(ys[nearest] + y0)


def whole_ids(label_map: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return a ``(1, H, W)`` label map as ``(H, W)`` int64; resampling may have left floating-point numbers."""
    return np.rint(convert_to_numpy(label_map)[0]).astype(np.int64)


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


def class_masks(instances: np.ndarray, classes: Mapping[int, int], count: int) -> np.ndarray:
    """Return the mask of every class, ``(count, H, W)`` bool.

    Args:
        instances: ``(H, W)`` integers, 0 = background.
        classes: ``{instance id: class id}``.
        count: number of classes.

    Raises:
        DatasetError: a nucleus without a class.

    Example:
        >>> class_masks(np.array([[0, 5, 7]]), {5: 1, 7: 0}, 2).astype(int).tolist()
        [[[0, 0, 1]], [[0, 1, 0]]]
    """
    ids, place = np.unique(instances, return_inverse=True)
    of_id = np.full(len(ids), -1)
    of_id[ids > 0] = class_of_each(ids[ids > 0].tolist(), classes)
    return np.stack([of_id[place].reshape(instances.shape) == number for number in range(count)])


class NucleusSizesd(MapTransform):
    """Add the width and height of every nucleus's box.

    Args:
        keys: the instance map ``(1, H, W)``; whole numbers, also in a floating-point type.

    The item gains ``point_sizes`` ``(G, 2)`` float32 in pixels, ordered by instance id like the points of
    :class:`~nucsam_monai.transforms.NucleusCentroidsd`.
    """

    def __init__(self, keys: KeysCollection = "instances") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the sizes added."""
        item = dict(data)
        for key in self.key_iterator(item):
            instances = whole_ids(item[key])
            table = prediction_from_instances(instances).table
            width = table["box_x_max_px"] - table["box_x_min_px"]
            height = table["box_y_max_px"] - table["box_y_min_px"]
            item["point_sizes"] = torch.from_numpy(np.stack([width, height], axis=1).astype(np.float32))
        return item


class DenseNucleid(MapTransform):
    """Add the mask of all nuclei and, from each nucleus's centre, the horizontal and vertical distance of its pixels.

    The target of HoVer-Net (Graham et al., 2019, section 3.1) in cells of several pixels; the pixel in the middle of
    a cell represents it, as in the losses of masks.

    Args:
        keys: the instance map ``(1, H, W)``.
        output_key: key of the target ``(3, H // k, W // k)`` float32: 0 or 1, and distances from -1 to 1.
        pixels_per_cell: k.

    Raises:
        ConfigurationError: a cell of less than one pixel.
    """

    def __init__(
        self, keys: KeysCollection = "instances", output_key: str = "dense", pixels_per_cell: int = 1
    ) -> None:
        super().__init__(keys)
        if pixels_per_cell < 1:
            raise ConfigurationError(f"pixels_per_cell {pixels_per_cell}: expected 1 or more.")
        self.output_key = output_key
        self.pixels_per_cell = pixels_per_cell
        self.distances = ComputeHoVerMaps()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the target added."""
        item = dict(data)
        side = self.pixels_per_cell
        for key in self.key_iterator(item):
            instances = convert_to_tensor(item[key], track_meta=False)
            rows, columns = (side * (length // side) for length in instances.shape[-2:])
            cells = instances[:, side // 2 : rows : side, side // 2 : columns : side]
            distances = convert_to_tensor(self.distances(cells), dtype=torch.float32, track_meta=False)
            item[self.output_key] = torch.cat([(cells > 0).float(), distances])
        return item
