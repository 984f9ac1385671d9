"""A small copy of PanNuke's layout: arrays per fold, in archives per fold, with its traps."""

import io
from collections.abc import Mapping

import numpy as np

from tests.data.originals import noise

SIZE = 12
TISSUES = ("Breast", "Bile-duct", "HeadNeck")


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    return buffer.getvalue()


def pannuke_masks(count: int) -> np.ndarray:
    """Image 0 has touching, overlapping and hidden nuclei, image 1 has none, the others have one of a pixel."""
    masks = np.zeros((count, SIZE, SIZE, 6), np.float64)
    masks[0, 1:5, 1:5, 0] = 7  # neoplastic; its right half belongs to the epithelial nucleus
    masks[0, 6:8, 1:3, 0] = 3
    masks[0, 1:5, 3:7, 4] = 7  # epithelial, with an id of the first channel
    masks[0, 9:11, 9:11, 1] = 1  # inflammatory, hidden below the connective one
    masks[0, 9:12, 9:12, 2] = 250
    masks[2:, 0, 0, 3] = 1
    masks[..., 5] = 1 - (masks[..., :5] > 0).any(axis=-1)
    return masks


def pannuke_fold(fold: int, count: int = 3, *, root: str | None = None) -> dict[str, bytes]:
    """The members of ``fold_<fold>.zip`` as they are distributed."""
    root = f"Fold {fold}/" if root is None else root
    images = np.stack([noise(SIZE, SIZE, 3, 10 * fold + row) for row in range(count)]).astype(np.float64)
    types = np.array([TISSUES[row % len(TISSUES)] for row in range(count)], dtype="<U13")
    return {
        f"{root}images/fold{fold}/images.npy": npy(images),
        f"{root}images/fold{fold}/types.npy": npy(types),
        f"{root}masks/fold{fold}/masks.npy": npy(pannuke_masks(count)),
        f"{root}README.md": b"PanNuke",
        f"{root}masks/by-nc-sa.md": b"licence",
    }


def with_array(members: Mapping[str, bytes], name: str, array: np.ndarray | bytes) -> dict[str, bytes]:
    """Replace the only member of that file name."""
    (member,) = (key for key in members if key.endswith(f"/{name}"))
    return {**members, member: array if isinstance(array, bytes) else npy(array)}
