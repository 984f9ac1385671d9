"""A small copy of the layout of SegPC-2021."""

import numpy as np

from tests.data.encoded import bmp
from tests.data.originals import noise

SHAPE = (10, 16)


def cell_mask(left: int, *, channels: int = 1, nucleus: bool = True) -> np.ndarray:
    """A cell of 6 x 6 pixels from row 2 with a nucleus of 2 x 2 in its middle."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[2:8, left : left + 6] = 20
    if nucleus:
        mask[4:6, left + 2 : left + 4] = 40
    return mask if channels == 1 else np.repeat(mask[..., None], channels, axis=2)


def segpc_members(train: int = 8, validation: int = 4, test: int = 2, root: str = "") -> dict[str, bytes]:
    """Two overlapping cells per image: cell 2 from column 1, cell 10 of three channels from column 4."""
    members = {}
    for part, count in (("train", train), ("validation", validation), ("test", test)):
        for number in range(1, count + 1):
            members[f"{root}{part}/x/{number}.bmp"] = bmp(noise(*SHAPE, 3, number))
            if part != "test":
                members[f"{root}{part}/y/{number}_2.bmp"] = bmp(cell_mask(1))
                members[f"{root}{part}/y/{number}_10.bmp"] = bmp(cell_mask(4, channels=3))
    return members
