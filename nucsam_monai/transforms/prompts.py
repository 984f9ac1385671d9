"""Make prompts, points and boxes, from a file, from the ground truth, or from detected nuclei."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Compose, MapTransform, Randomizable, Transform
from monai.utils import convert_to_numpy
from numpy.typing import NDArray

from nucsam_monai.io import points_by_id, read_points, require_inside
from nucsam_monai.transforms.targets import class_of_each, nucleus_points, whole_ids
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import prediction_from_instances

_NUCLEUS, _OTHER, _PADDING, _CORNERS = 1, 0, -1, (2, 3)
_JITTER = 0.1
"""Largest move of a side of a random box, as a share of the box ("Segment Anything", appendix A)."""

TrainingPrompts = Literal["predicted", "gt_random", "gt_centroid", "mixed"]
"""Where prompts come from: the first stage; a random pixel of each nucleus; its centroid; the first stage, and a
random pixel for nuclei that it missed."""

USES_FOUND: tuple[TrainingPrompts, ...] = ("predicted", "mixed")
_POINT_LABELS, _BOX_LABELS = (1,), (2, 3)


class ExpertPointsd(MapTransform):
    """Add the points that a file holds for an image; images that are not in the file get none.

    The item gains ``points`` ``(K, 2)`` float32 as (x, y) in pixels and ``point_labels`` ``(K,)`` int64 (1 nucleus,
    0 background).

    Args:
        keys: the image ``(C, H, W)``, still at its original size.
        file: JSON file with the points, see :func:`nucsam_monai.io.read_points`.
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


class NucleusPointsd(Randomizable, MapTransform):
    """Add one foreground point per nucleus: prompts from the ground truth.

    A point is the nucleus's centroid, or its pixel nearest to the centroid where that lies outside. Of more
    than ``max_points`` nuclei a random selection is taken; fewer are padded with label -1.

    Args:
        keys: the instance map ``(1, H, W)``.
        max_points: number of points K of every image; None takes all nuclei, so that K differs between images and
            they cannot be collated. It is 1 at least.
        seed: seed of the selection, which then depends only on the image; None draws
            from the transform's random state.

    The item gains ``points`` ``(K, 2)`` float32 as (x, y) in pixels and ``point_labels`` ``(K,)`` int64.
    """

    def __init__(
        self, keys: KeysCollection = "instances", max_points: int | None = 256, seed: int | None = None
    ) -> None:
        MapTransform.__init__(self, keys)
        self.max_points = max_points
        self.seed = seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the points added."""
        item = dict(data)
        for key in self.key_iterator(item):
            found = nucleus_points(whole_ids(item[key]))
            count = max(len(found), 1) if self.max_points is None else self.max_points
            if len(found) > count:
                random = self.R if self.seed is None else np.random.RandomState(self.seed)
                found = found[random.permutation(len(found))[:count]]
            points = np.zeros((count, 2), dtype=np.float32)
            labels = np.full(count, -1, dtype=np.int64)
            points[: len(found)], labels[: len(found)] = found, 1
            item["points"], item["point_labels"] = torch.from_numpy(points), torch.from_numpy(labels)
        return item


class _PointPrompt(NamedTuple):
    """The prompts of n nuclei.

    Attributes:
        points: ``(n, 1 + K, 2)`` float32 as (x, y) in pixels: the nucleus's own, then its neighbours'.
        labels: ``(n, 1 + K)`` int64: 1 the nucleus, 0 a neighbour, -1 padding; 2 and 3 the corners of a box.
    """

    points: np.ndarray
    labels: np.ndarray


class NucleusPromptsd(Randomizable, MapTransform):
    """Prompt some nuclei of a crop by one point each, with K negative points in their neighbours (PromptNucSeg).

    Every nucleus of the crop gets one point. A chosen nucleus is prompted by its own; its negatives are the
    nearest points of all other nuclei, chosen or not. Some may be prompted by a box instead, whose sides are moved at
    random, as a user draws imprecisely.

    Args:
        keys: the instance map ``(1, H, W)``; of several only the last one's prompts stay.
        max_masks: number of nuclei that are chosen at random, or all if there are no more; None takes all.
        point: ``random`` draws any pixel of the nucleus; ``centroid`` takes its centroid, or the nucleus's
            pixel nearest to it.
        negatives: number K of negatives of each nucleus; fewer neighbours are padded with label -1.
        negatives_prob: fraction of the prompts that keep their negatives; the others are padded.
        boxes_prob: fraction of the prompts that are boxes. With boxes every prompt has one more point: the second
            corner of a box, or the padding that SAM appends to points.
        classes_key: key of the item's ``{instance id: class id}``, as
            :func:`~nucsam_monai.data.label_files.read_classes` returns it; None for no classes.

    Raises:
        ConfigurationError: an unknown ``point``, or a number outside its range.
        DatasetError: when called, a nucleus without a class.

    The item gains ``points`` ``(Z, 1 + K, 2)`` float32, ``point_labels`` ``(Z, 1 + K)`` int64, ``masks``
    ``(Z, H, W)`` uint8 and, with classes, ``class_ids`` ``(Z,)`` int64; Z is 0 without nuclei.
    """

    def __init__(
        self,
        keys: KeysCollection = "instances",
        max_masks: int | None = 20,
        *,
        point: Literal["random", "centroid"] = "random",
        negatives: int = 0,
        negatives_prob: float = 1.0,
        boxes_prob: float = 0.0,
        classes_key: str | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        if point not in ("random", "centroid"):
            raise ConfigurationError(f"point '{point}': expected 'random' or 'centroid'.")
        if (max_masks is not None and max_masks < 1) or negatives < 0:
            raise ConfigurationError(
                "prompts: expected max_masks from 1 on or null and negatives from 0 on, found "
                f"{max_masks} and {negatives}."
            )
        if not (0 <= negatives_prob <= 1 and 0 <= boxes_prob <= 1):
            raise ConfigurationError(
                "prompts: expected negatives_prob and boxes_prob from 0 to 1, found "
                f"{negatives_prob} and {boxes_prob}."
            )
        self.max_masks = max_masks
        self.point = point
        self.negatives = negatives
        self.negatives_prob = negatives_prob
        self.boxes_prob = boxes_prob
        self.classes_key = classes_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with prompts and masks added."""
        item = dict(data)
        for key in self.key_iterator(item):
            instances = convert_to_numpy(item[key])[0]
            ids = np.unique(instances)
            ids = ids[ids > 0]
            own = nucleus_points(instances) if self.point == "centroid" else random_points(instances, self.R)
            chosen = self._choose(len(ids))
            points, labels = prompt_with_neighbours(own, chosen, self.negatives)
            if self.negatives:
                labels[self.R.random_sample(len(chosen)) >= self.negatives_prob, 1:] = _PADDING
            if self.boxes_prob:
                points, labels = self._with_boxes(
                    points, labels, own_boxes(instances)[chosen], instances.shape
                )
            item["points"], item["point_labels"] = torch.from_numpy(points), torch.from_numpy(labels)
            masks = instances[None] == ids[chosen][:, None, None]
            item["masks"] = torch.from_numpy(masks.astype(np.uint8))
            if self.classes_key is not None:
                classes = class_of_each(ids[chosen].tolist(), item[self.classes_key])
                item["class_ids"] = torch.tensor(classes, dtype=torch.int64)
        return item

    def _with_boxes(
        self, points: np.ndarray, labels: np.ndarray, boxes: np.ndarray, size: tuple[int, ...]
    ) -> _PointPrompt:
        """Append padding to the prompts, and replace some by a box ``(Z, 2, 2)``."""
        points = np.concatenate([points, np.zeros_like(points[:, :1])], axis=1)
        labels = np.concatenate([labels, np.full_like(labels[:, :1], _PADDING)], axis=1)
        boxed = self.R.random_sample(len(boxes)) < self.boxes_prob
        drawn = _jittered_boxes(boxes, self.R).clip(-0.5, np.array(size[::-1], dtype=np.float32) - 0.5)
        points[boxed], labels[boxed] = 0, _PADDING
        points[boxed, :2], labels[boxed, :2] = drawn[boxed], _CORNERS
        return _PointPrompt(points, labels)

    def _choose(self, nuclei: int) -> np.ndarray:
        if self.max_masks is None or nuclei <= self.max_masks:
            return np.arange(nuclei)
        return self.R.permutation(nuclei)[: self.max_masks]


def random_points(instances: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Return a uniformly random pixel (x, y) of each nucleus, ``(n, 2)`` float32 in the order of the ids.

    Args:
        instances: ``(H, W)`` label map; 0 is background.
        random: the random number generator, called for n numbers.

    Example:
        >>> random_points(np.array([[0, 0, 5]]), np.random.RandomState(0))
        array([[2., 0.]], dtype=float32)
    """
    pixels = np.flatnonzero(instances)
    values = instances.ravel()[pixels]
    pixels = pixels[np.argsort(values, kind="stable")]
    _, starts, sizes = np.unique(np.sort(values), return_index=True, return_counts=True)
    drawn = starts + (random.random_sample(len(sizes)) * sizes).astype(np.int64)
    ys, xs = np.divmod(pixels[drawn], instances.shape[1])
    return np.stack([xs, ys], axis=1).astype(np.float32)


def own_boxes(instances: np.ndarray) -> np.ndarray:
    """Return the corners ``(n, 2, 2)`` of each nucleus's box, its outermost pixels' outer edges.

    Example:
        >>> own_boxes(np.array([[0, 5, 5]]))
        array([[[ 0.5, -0.5],
                [ 2.5,  0.5]]], dtype=float32)
    """
    table = prediction_from_instances(instances).table
    names = ("box_x_min_px", "box_y_min_px", "box_x_max_px", "box_y_max_px")
    corners = np.stack([table[name] for name in names], axis=-1).astype(np.float32)
    return corners.reshape(-1, 2, 2) - np.float32(0.5)


def _jittered_boxes(boxes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Move every side of ``(n, 2, 2)`` boxes at random."""
    sides = (boxes[:, 1] - boxes[:, 0])[:, None]
    return (boxes + random.uniform(-_JITTER, _JITTER, boxes.shape) * sides).astype(np.float32)


def prompt_with_neighbours(points: np.ndarray, chosen: np.ndarray, negatives: int) -> _PointPrompt:
    """Prompt chosen nuclei by their own points, and by the nearest points of others as negatives.

    Args:
        points: ``(n, 2)`` one point (x, y) of every nucleus.
        chosen: ``(Z,)`` indices of nuclei.
        negatives: number K of negatives; a nucleus with fewer neighbours is padded.

    Example:
        >>> points = np.array([[0, 0], [9, 0], [2, 0]], dtype=np.float32)
        >>> prompt_with_neighbours(points, np.array([0]), negatives=1).points
        array([[[0., 0.],
                [2., 0.]]], dtype=float32)
    """
    prompts = np.zeros((len(chosen), 1 + negatives, 2), dtype=np.float32)
    labels = np.full((len(chosen), 1 + negatives), _PADDING, dtype=np.int64)
    prompts[:, 0], labels[:, 0] = points[chosen], _NUCLEUS
    found = min(negatives, len(points) - 1)
    if found > 0:
        away = ((points[chosen][:, None] - points[None]) ** 2).sum(axis=2)  # (Z, n)
        away[np.arange(len(chosen)), chosen] = np.inf
        nearest = np.argsort(away, axis=1, kind="stable")[:, :found]
        prompts[:, 1 : 1 + found], labels[:, 1 : 1 + found] = points[nearest], _OTHER
    return _PointPrompt(prompts, labels)


class FoundNuclei(NamedTuple):
    """Hold the nuclei that a detector found in one image.

    Attributes:
        points: ``(n, k, 2)`` float32 as (x, y) in pixels: the point of each nucleus, and for a detector of boxes
            the box's four corners after it.
        scores: ``(n,)`` float32, higher is more certain.
    """

    points: NDArray[np.float32]
    scores: NDArray[np.float32]


class AugmentWithFoundd(Randomizable, Transform):
    """Augment an item and add the points found in its image, transformed like the pixels.

    Points are moved as coordinates by the affine map that MONAI keeps of each of its transforms; nothing is rounded
    or drawn. A transform that moves pixels in another way, like an elastic one or
    :class:`~nucsam_monai.transforms.RandGridShuffled`, leaves the points behind. Images that ``found`` does not name
    are augmented alone.

    Args:
        transforms: dictionary transforms, random or not.
        found: nuclei by what the item has under ``name_key``. It is looked into when an item is augmented, so that
            it can be filled after the transform is built.
        name_key: key of the image's name.
        followed_key: key of a ``(C, H, W)`` map that all spatial transforms are applied to.

    The item gains ``found_points`` ``(n, k, 2)`` and ``found_scores`` ``(n,)``, both float32; points may lie outside
    of what the augmentation left of the image.
    """

    def __init__(
        self,
        transforms: Sequence[Callable],
        found: Mapping[str, FoundNuclei],
        name_key: str = "image_path",
        followed_key: str = "instances",
    ) -> None:
        super().__init__()
        self.augmentation = Compose(transforms)
        self.found = found
        self.name_key = name_key
        self.followed_key = followed_key

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> "AugmentWithFoundd":
        """Seed the augmentation."""
        self.augmentation.set_random_state(seed=seed, state=state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the augmented item; the item itself is not modified."""
        item = dict(data)
        nuclei = self.found.get(item[self.name_key])
        if nuclei is None:
            return self.augmentation(item)
        with _tracked():
            item[self.followed_key] = MetaTensor(item[self.followed_key], affine=torch.eye(4))
            item = self.augmentation(item)
            moved = move_points(nuclei.points, item[self.followed_key].affine)
        item = {
            key: value.as_tensor() if isinstance(value, MetaTensor) else value for key, value in item.items()
        }
        item["found_points"] = torch.from_numpy(moved)
        item["found_scores"] = torch.from_numpy(nuclei.scores)
        return item


def move_points(points: NDArray[np.float32], affine: torch.Tensor) -> NDArray[np.float32]:
    """Return where points of an image are in its augmented version.

    Args:
        points: ``(..., 2)`` as (x, y) in pixels, pixel centres at integers.
        affine: MONAI's matrix, which leads from (row, column) of the augmented image to that of the original one.

    Example:
        >>> mirrored = torch.tensor([[1.0, 0, 0], [0, -1, 9], [0, 0, 1]])  # ten columns
        >>> move_points(np.array([[2.0, 5.0]], dtype=np.float32), mirrored)
        array([[7., 5.]], dtype=float32)
    """
    matrix = affine.double().numpy()
    rows_columns = points[..., ::-1] - matrix[:2, -1]
    moved = rows_columns @ np.linalg.inv(matrix[:2, :2]).T
    return np.ascontiguousarray(moved[..., ::-1], dtype=np.float32)


@contextmanager
def _tracked() -> Iterator[None]:
    """Let MONAI keep affine matrices inside the ``with`` block."""
    before = get_track_meta()
    set_track_meta(True)
    try:
        yield
    finally:
        set_track_meta(before)


class MatchedPromptsd(Randomizable, MapTransform):
    """Prompt some nuclei of a crop by one point or box each, for training CFR-SAM's second stage.

    A point that the first stage found belongs to the instance of the pixel that it lies in; of several points of
    one nucleus the one with the highest score counts. Nuclei without a prompt are not trained on.

    Args:
        keys: the instance map ``(1, H, W)``; of several only the last one's prompts stay.
        max_nuclei: nuclei that are chosen at random, or all if there are no more; the paper has 25.
        prompts: kind of prompts, see :data:`TrainingPrompts`; ``predicted`` and ``mixed`` need the item's
            ``found_points`` and ``found_scores`` of :class:`~nucsam_monai.transforms.AugmentWithFoundd`.
        prompt: ``point``, or ``box``: the found box around the nucleus's point, or in place of its centroid the
            nucleus's own box, and in place of a random pixel that box with its sides moved at random.

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
            instances = whole_ids(item[key])
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
            return _jittered_boxes(boxes, self.R)
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
        scores: ``(n,)``; the first wins if scores are equal.
        instances: ``(H, W)`` label map; 0 is background.

    Returns:
        The ids ``(m,)`` of nuclei with a point, ascending, and the row ``(m,)`` of the best point of each.

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
