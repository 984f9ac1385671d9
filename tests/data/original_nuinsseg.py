"""A small copy of NuInsSeg's layout: a folder per organ with the files of one kind in a folder each."""

from collections.abc import Mapping

import numpy as np

from tests.data.originals import noise, png, tiff

SIZE = 12
ORGANS: Mapping[str, tuple[str, int]] = {
    "human bladder": ("human_bladder", 10),
    "human salivory gland": ("human_salivory_gland", 4),
    "mouse fat (white and brown)_subscapula": ("mouse_subscapula", 7),
    "mouse femur": ("mouse_femur", 2),
}
"""``{folder: (beginning of its file names, number of images)}``; not in the order of the file names."""


def nuinsseg_labels() -> np.ndarray:
    labels = np.zeros((SIZE, SIZE), np.uint16)
    labels[1:4, 1:4], labels[4:7, 1:4] = 5, 300
    return labels


def nuinsseg_members(root: str = "NuInsSeg/") -> dict[str, bytes]:
    """Two touching nuclei per image; the first image of each organ has none."""
    members = {}
    for organ, (prefix, count) in ORGANS.items():
        for number in range(1, count + 1):
            sample_id = f"{prefix}_{number:02d}"
            labels = nuinsseg_labels() * (number > 1)
            folder = f"{root}{organ}/"
            members |= {
                f"{folder}tissue images/{sample_id}.png": png(noise(SIZE, SIZE, 3, number)),
                f"{folder}label masks modify/{sample_id}.tif": tiff(labels),
                f"{folder}label masks/{sample_id}.tif": tiff(labels + 1),
                f"{folder}mask binary/{sample_id}.png": png((labels > 0).astype(np.uint8) * 255),
                f"{folder}vague areas/mask binary_vague/{sample_id}.png": png(np.zeros_like(labels)),
                f"{folder}vague areas/label masks modify/{sample_id}.tif": b"never opened",
                f"{folder}Imagj_zips/{sample_id}.zip": b"never opened",
                f"{folder}vague areas/Imagj_zips/{sample_id}.zip": b"never opened",
            }
    return members
