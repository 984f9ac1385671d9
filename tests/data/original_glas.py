"""A small copy of the layout of GlaS."""

from functools import cache

import numpy as np

from tests.data.encoded import bmp, labels
from tests.data.originals import noise

PARTS = {"train": 85, "testA": 60, "testB": 20}


def glas_members(root: str = "Warwick QU Dataset (Released 2016_07_08)/") -> dict[str, bytes]:
    """All images, and the table of grades with its blanks; 16 patients are in every part."""
    members = {}
    rows = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    for part, count in PARTS.items():
        for number in range(1, count + 1):
            name = f"{part}_{number}"
            members[f"{root}{name}.bmp"] = _image(number)
            members[f"{root}{name}_anno.bmp"] = _annotation()
            grade = " benign, adenomatous" if number % 2 else " malignant, moderately differentiated"
            rows.append(f"{name},{number % 16},{grade}")
    members[f"{root}Grade.csv"] = "\r\n".join(rows).encode()
    return members


@cache
def _image(number: int) -> bytes:
    return bmp(noise(6, 9, 3, number))


@cache
def _annotation() -> bytes:
    return bmp(labels((6, 9), 4, 9).astype(np.uint8))
