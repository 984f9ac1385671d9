"""The patients of The Cancer Genome Atlas whose slides the MoNuSeg and Kumar images were cut from."""

from collections.abc import Mapping

_CLASSIC_TISSUES = {
    "breast": "A7-A13E A7-A13F AR-A1AK AR-A1AS E2-A1B5 E2-A14V",
    "kidney": "B0-5711 HE-7128 HE-7129 HE-7130 B0-5710 B0-5698",
    "liver": "18-5592 38-6178 49-4488 50-5931 21-5784 21-5786",
    "prostate": "G9-6336 G9-6348 G9-6356 G9-6363 CH-5767 G9-6362",
    "bladder": "DK-A2I6 G2-A2EK",
    "colon": "AY-A8YK NH-A8F7",
    "stomach": "KB-A93J RD-A8N9",
}
_TEST_TISSUES = {
    "breast": "AC-A2FO AO-A0J2",
    "kidney": "2Z-A9J9 GL-6846 IZ-8196",
    "lung": "44-2665 69-7764",
    "prostate": "EJ-A46H HC-7209",
    "bladder": "CU-A0YN ZF-A9R5",
    "colon": "A6-6782",
    "brain": "FG-A4MU HT-8564",
}


def _by_patient(tissues: Mapping[str, str]) -> dict[str, str]:
    return {f"TCGA-{patient}": tissue for tissue, patients in tissues.items() for patient in patients.split()}


CLASSIC_PATIENTS = _by_patient(_CLASSIC_TISSUES)
"""``{patient: tissue}`` of the 30 images of the first release, the training set of most papers."""

TEST_PATIENTS = _by_patient(_TEST_TISSUES)
"""``{patient: tissue}`` of the 14 test images of the MoNuSeg challenge."""


def patient_of(barcode: str) -> str:
    """Return the first three parts of a TCGA barcode: ``TCGA-<tissue source site>-<participant>``."""
    return "-".join(barcode.split("-")[:3])


def tissue_of(barcode: str) -> str | None:
    """Return the tissue of an image; None where the patient is not in the tables."""
    patient = patient_of(barcode)
    return CLASSIC_PATIENTS.get(patient) or TEST_PATIENTS.get(patient)
