"""A small copy of the layout of Kumar with ``.npy`` instance maps."""

from nucsam_monai.data.converters.monuseg import CLASSIC_PATIENTS
from tests.data.encoded import labels, npy
from tests.data.originals import noise, png

TEST1 = ("E2-A1B5", "E2-A14V", "B0-5710", "B0-5698", "21-5784", "21-5786", "CH-5767", "G9-6362")
TEST2_TISSUES = ("bladder", "colon", "stomach")


def part_of_patient(patient: str) -> str:
    if CLASSIC_PATIENTS[patient] in TEST2_TISSUES:
        return "test2"
    return "test1" if patient.removeprefix("TCGA-") in TEST1 else "train_ori16"


def kumar_members(root: str = "Kumar/") -> dict[str, bytes]:
    """All 30 images with nuclei 7 and 3, and the coloured maps that lie beside the instance maps."""
    members = {}
    for seed, patient in enumerate(CLASSIC_PATIENTS):
        part, name = part_of_patient(patient), f"{patient}-01Z-00-DX1"
        members[f"{root}images/{part}/{name}.png"] = png(noise(6, 9, 3, seed))
        members[f"{root}labels/{part}_ins/{name}.npy"] = npy(labels((6, 9), 7, 3))
        members[f"{root}labels/{part}/{name}.png"] = png(noise(6, 9, 3, seed + 100))
    return members
