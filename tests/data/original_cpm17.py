"""A small copy of the layout of CPM-17."""

from tests.data.encoded import labels, mat
from tests.data.originals import noise, png


def cpm17_members(root: str = "cpm17/", count: int = 32) -> dict[str, bytes]:
    """Training and test images of the same names, with instance maps of floating point ids."""
    members = {}
    for part, seed in (("train", 0), ("test", 100)):
        for number in range(count):
            name = f"image_{number:02d}"
            members[f"{root}{part}/Images/{name}.png"] = png(noise(6, 9, 3, seed + number))
            members[f"{root}{part}/Labels/{name}.mat"] = mat(inst_map=labels((6, 9), 5, 2).astype(float))
            members[f"{root}{part}/Overlay/{name}.png"] = png(noise(6, 9, 3, seed + number + 200))
    return members
