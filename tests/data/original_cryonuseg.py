"""A small copy of CryoNuSeg's layout: three mark-ups, two of them in folders nested twice."""

from collections.abc import Sequence

import numpy as np

from tests.data.originals import noise, png, tiff

SIZE = 16
ORGANS = ("AdrenalGland", "Larynx", "LymphNodes", "Mediastinum", "Pancreas", "Pleura", "Skin", "Testes")
ORGANS += ("Thymus", "ThyroidGland")
IDS = tuple(f"Human_{organ}_{number:02d}" for organ in ORGANS for number in range(1, 4))
SECOND_ROUND = "Annotator 1 (biologist second round of manual marks up)"
MARK_UPS = {
    "biologist": "Annotator 1 (biologist)/",
    "biologist_second_round": f"{SECOND_ROUND}/{SECOND_ROUND}/",
    "bioinformatician": "Annotator 2 (bioinformatician)/Annotator 2 (bioinformatician)/",
}


def label_map(nuclei: int) -> np.ndarray:
    """Nuclei of 2 x 2 pixels in a row, with ids 3, 6, 9, ..."""
    labels = np.zeros((SIZE, SIZE), np.uint16)
    for nucleus in range(nuclei):
        labels[3:5, 3 * nucleus : 3 * nucleus + 2] = 3 * (nucleus + 1)
    return labels


def cryonuseg_members(ids: Sequence[str] = IDS) -> dict[str, bytes]:
    """The first mark-up has one nucleus per image, the second two, the third three."""
    members = {
        f"tissue images/{sample_id}.tif": tiff(noise(SIZE, SIZE, 3, i)) for i, sample_id in enumerate(ids)
    }
    for nuclei, folder in enumerate(MARK_UPS.values(), start=1):
        labels = label_map(nuclei)
        for sample_id in ids:
            members[f"{folder}label masks modify/{sample_id}.tif"] = tiff(labels)
            members[f"{folder}label masks/{sample_id}.tif"] = tiff(labels + 1)
            members[f"{folder}mask binary/{sample_id}.png"] = png((labels > 0).astype(np.uint8) * 255)
            members[f"{folder}Imagj_zips/{sample_id}.zip"] = b"outlines, never opened"
    return members
