"""Convert Kumar: the 30 H&E images of the first release of MoNuSeg with instance maps, in three parts."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from nucsam_monai.data.converters.conversion import (
    ConversionSummary,
    DatasetInfo,
    Splits,
    check_counts,
    named_protocols,
    write_dataset,
)
from nucsam_monai.data.converters.monuseg import CLASSIC_PATIENTS, patient_of, tissue_of
from nucsam_monai.data.converters.pairing import decode_pair, pair_by_name
from nucsam_monai.data.converters.sources import Source, open_source
from nucsam_monai.data.splits import SPLIT_SEED, random_split
from nucsam_monai.data.writer import SampleJob

INFO = DatasetInfo(
    name="kumar",
    title="Kumar: H&E of seven organs with instance maps, test images of seen and of unseen organs",
    images="16 + 8 + 6 test",
    size_px="1000x1000",
    modality="H&E",
    magnification=40.0,
    mpp=0.25,
    licence="CC BY-NC-SA 4.0",
    citation="Kumar et al., A dataset and a technique for generalized nuclear segmentation for computational "
    "pathology, IEEE TMI 36, 2017",
    obtain="https://monuseg.grand-challenge.org/Data (outlines), instance maps from https://github.com/honglianghe/CDNet",
    protocols={
        "kumar_16_8_6": "all 16 training images, no validation; the 14 test images of seen and unseen organs",
        "kumar_15": "15 % of the training images, drawn with seed, for validation; the 14 test images",
        "kumar_test1": "all 16 training images, no validation; the 8 test images of organs seen in training",
        "kumar_test2": "all 16 training images, no validation; the 6 test images of organs not seen in training",
    },
)

_TEST1_PATIENTS = frozenset(
    f"TCGA-{patient}"
    for patient in ("E2-A1B5", "E2-A14V", "B0-5710", "B0-5698", "21-5784", "21-5786", "CH-5767", "G9-6362")
)
_UNSEEN_TISSUES = frozenset({"bladder", "colon", "stomach"})

_LAYOUT = (
    "images/{train_ori16,test1,test2}/<TCGA barcode>.png and .npy (or .mat) instance maps of these names"
)
_MEMBER = re.compile(
    r"(?:.*/)?(?P<id>TCGA(?:-[0-9A-Z]+)+)(?P<rest>[^/]*)\.(?P<suffix>npy|mat|png|tiff?|bmp|jpe?g)",
    re.IGNORECASE,
)
_WORDS = re.compile(r"[a-z]+")
_INSTANCE_FOLDER = frozenset({"ins", "inst", "instance", "instances"})
_OTHER_ANNOTATION = frozenset({"label", "labels", "mask", "masks", "annotation", "annotations", "overlay"})
_HOLD_OUT = {"training": 0.85, "validation": 0.15}


def convert(
    source: Path | str,
    output_dir: Path | str,
    *,
    protocol: str | None = None,
    seed: int = SPLIT_SEED,
    workers: int = 1,
) -> ConversionSummary:
    """Convert the images with the instance maps of the same names.

    The part of an image (training, test of seen organs, test of unseen organs) follows from its TCGA patient,
    whatever the folders are called; images of other patients are in no split. Some images were replaced when
    MoNuSeg was published, so results on copies made of that are not comparable with those on the original.

    Args:
        source: the archive, or a folder with the images and instance maps.
        output_dir: the dataset folder to write.
        protocol: ``"kumar_16_8_6"`` (the default), ``"kumar_15"``, ``"kumar_test1"`` or ``"kumar_test2"``.
        seed: seed of the validation images of ``"kumar_15"``.
        workers: processes that decode and write.

    Raises:
        ConfigurationError: the protocol is unknown, or the source has no images for it.
        DatasetError: the source is missing, damaged or of another layout, or ``output_dir`` is not empty.
    """
    with open_source(source) as opened:
        pairs = pair_by_name(
            opened, _members(opened, "image"), _members(opened, "labels"), title="Kumar", layout=_LAYOUT
        )
        parts = {part: [key for key in pairs if _part(key) == part] for part in ("train", "test1", "test2")}
        for part, ids in parts.items():
            check_counts(f"kumar/{part}", opened, {"images": len(ids)})
        return write_dataset(
            output_dir,
            INFO,
            [
                SampleJob(sample_id, partial(decode_pair, pair), tissue_of(sample_id), patient_of(sample_id))
                for sample_id, pair in sorted(pairs.items())
            ],
            sources=[opened],
            protocols=named_protocols(
                INFO, _splits(parts, seed), {sample_id: patient_of(sample_id) for sample_id in pairs}
            ),
            protocol=protocol,
            conversion={"seed": seed},
            workers=workers,
        )


def _splits(parts: Mapping[str, list[str]], seed: int) -> dict[str, Splits]:
    train, test1, test2 = parts["train"], parts["test1"], parts["test2"]
    return {
        "kumar_16_8_6": {"training": train, "test": test1 + test2},
        "kumar_15": {**random_split(train, _HOLD_OUT, seed), "test": test1 + test2},
        "kumar_test1": {"training": train, "test": test1},
        "kumar_test2": {"training": train, "test": test2},
    }


def _part(sample_id: str) -> str | None:
    patient = patient_of(sample_id)
    if patient not in CLASSIC_PATIENTS:
        return None
    if CLASSIC_PATIENTS[patient] in _UNSEEN_TISSUES:
        return "test2"
    return "test1" if patient in _TEST1_PATIENTS else "train"


def _members(source: Source, kind: str) -> Iterator[tuple[str, str]]:
    """Yield ``(id, member name)`` of the images or of the instance maps."""
    for name, found in source.match(_MEMBER):
        if _kind(name, found["suffix"].lower()) == kind:
            yield found["id"].upper(), name


def _kind(name: str, suffix: str) -> str | None:
    """Tell images from instance maps, and both from the binary and coloured masks of some copies."""
    folders = name.lower().split("/")[:-1]
    if suffix in {"npy", "mat"} or _INSTANCE_FOLDER & set(_WORDS.findall("".join(folders[-1:]))):
        return "labels"
    return None if _OTHER_ANNOTATION & set(_WORDS.findall("/".join(folders[-2:]))) else "image"
