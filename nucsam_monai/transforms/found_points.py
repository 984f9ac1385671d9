"""Augmentation that takes the points along which a detector found in an image."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Compose, Randomizable, Transform
from numpy.typing import NDArray


class FoundNuclei(NamedTuple):
    """What a detector found in one image.

    Attributes:
        points: ``(n, k, 2)`` float32 as (x, y) in pixels: the point of each nucleus, and for a detector of boxes
            the box' four corners after it.
        scores: ``(n,)`` float32, higher is surer.
    """

    points: NDArray[np.float32]
    scores: NDArray[np.float32]


class AugmentWithFoundd(Randomizable, Transform):
    """Augment an item and add the points found in its image, moved as the pixels are.

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
        """Return the augmented item; the item itself is left as it is."""
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
