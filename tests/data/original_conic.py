"""A small copy of CoNIC's arrays and table of patches."""

import numpy as np

from tests.data.original_pannuke import npy
from tests.data.originals import noise

SIZE = 8
PATCHES = tuple(
    f"{cohort}_{image}-{index:04d}"
    for cohort, images in (("consep", 5), ("crag", 10), ("dpath", 5))
    for image in range(1, images + 1)
    for index in range(2 if image % 2 else 1)
)
"""Twenty source images of three cohorts, with one or two patches each."""


def conic_labels(count: int = len(PATCHES)) -> np.ndarray:
    """Ids 2 and 40 of classes 6 and 1, one pixel of 40 of class 3; patch 1 has no nuclei."""
    labels = np.zeros((count, SIZE, SIZE, 2), np.uint16)
    labels[:, 1:3, 1:3] = 2, 6
    labels[:, 4:7, 4:7] = 40, 1
    labels[:, 4, 4, 1] = 3
    labels[1] = 0
    return labels


def conic_members(root: str = "") -> dict[str, bytes]:
    images = np.stack([noise(SIZE, SIZE, 3, row) for row in range(len(PATCHES))])
    return {
        f"{root}images.npy": npy(images),
        f"{root}labels.npy": npy(conic_labels()),
        f"{root}counts.csv": b"neutrophil,epithelial,lymphocyte,plasma,eosinophil,connective\n",
        f"{root}patch_info.csv": "\n".join(["patch_info", *PATCHES, ""]).encode(),
    }
