"""A small copy of the layout of TNBC."""

import numpy as np

from tests.data.originals import noise, png

# As published: 50 images of 11 patients.
IMAGES_OF_SLIDE = (7, 3, 5, 8, 4, 3, 3, 4, 6, 4, 3)


def tnbc_mask() -> np.ndarray:
    """Two nuclei that touch at a corner, which makes them one, and a nucleus apart."""
    mask = np.zeros((8, 10), dtype=np.uint8)
    mask[1:3, 1:3], mask[3:5, 3:5], mask[6, 8] = 255, 255, 255
    return mask


def tnbc_members(root: str = "TNBC_NucleiSegmentation/", slides: int = 11) -> dict[str, bytes]:
    """RGBA images and binary masks."""
    members = {}
    for slide, count in enumerate(IMAGES_OF_SLIDE[:slides], start=1):
        for number in range(1, count + 1):
            name = f"{slide:02d}_{number}.png"
            members[f"{root}Slide_{slide:02d}/{name}"] = png(noise(8, 10, 4, 100 * slide + number))
            members[f"{root}GT_{slide:02d}/{name}"] = png(tnbc_mask())
    return members
