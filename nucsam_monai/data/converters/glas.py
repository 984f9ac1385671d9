"""Convert GlaS: glands in H&E of benign and malignant colon tissue, the challenge of MICCAI 2015."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from nucsam_monai.data.converters.pairing import decode_pair, pair_by_name
from nucsam_monai.data.converters.sources import Source, open_source
from nucsam_monai.data.splits import last_fraction
from nucsam_monai.data.writer import SampleJob
from nucsam_monai.utils.errors import DatasetError

INFO = DatasetInfo(
    name="glas",
    title="GlaS: glands in H&E of benign and malignant colon tissue",
    images="85 + 60 and 20 test",
    size_px="up to 775x522",
    modality="H&E",
    magnification=20.0,
    mpp=0.62,
    licence="for research, by the terms of the challenge",
    citation="Sirinukunwattana et al., Gland segmentation in colon histology images: the GlaS challenge "
    "contest, Medical Image Analysis 35, 2017",
    obtain="https://warwick.ac.uk/fac/cross_fac/tia/data/glascontest (warwick_qu_dataset_released_2016_07_08.zip)",
    protocols={
        "glas": "the training images, the last part of the sorted ids for validation; test parts A and B",
        "glas_testA": "the same training and validation images; test part A (60 images)",
        "glas_testB": "the same training and validation images; test part B (20 images)",
    },
    class_names=("gland",),
)

_LAYOUT = "{train,testA,testB}_<number>.bmp with {train,testA,testB}_<number>_anno.bmp, and Grade.csv"
_MEMBER = re.compile(
    r"(?:.*/)?(?P<part>train|testA|testB)_(?P<number>\d+)(?P<annotation>_anno)?\.(?:bmp|png|tiff?|jpe?g)",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?P<part>train|testA|testB)_(?P<number>\d+)(?:\.bmp)?", re.IGNORECASE)
_GRADES_FILE = re.compile(r"(?:.*/)?grades?\.csv", re.IGNORECASE)
_GRADES = ("benign", "malignant")
_PARTS = {"train": "train", "testa": "testA", "testb": "testB"}


@dataclass(frozen=True)
class _Grade:
    """An entry of ``Grade.csv``."""

    patient: str
    grade: str


def convert(
    source: Path | str,
    output_dir: Path | str,
    *,
    protocol: str | None = None,
    validation_fraction: float = 0.1,
    workers: int = 1,
) -> ConversionSummary:
    """Convert the images with their annotation, whose values are ids of glands.

    Where ``Grade.csv`` is there, the tissue of an image is ``"benign colon"`` or ``"malignant colon"`` and
    its group is the patient. The parts of the challenge are not made by patient: protocols that divide
    patients say so.

    Args:
        source: the archive of the challenge or the folder unpacked from it.
        output_dir: the dataset folder to write.
        protocol: ``"glas"`` (the default), ``"glas_testA"`` or ``"glas_testB"``.
        validation_fraction: part of the training images, the last of the sorted ids, for validation.
        workers: processes that decode and write.

    Raises:
        ConfigurationError: an option is out of range, or the source has no images for the protocol.
        DatasetError: the source is missing, damaged or of another layout, or ``output_dir`` is not empty.
    """
    with open_source(source) as opened:
        pairs = pair_by_name(
            opened,
            _members(opened, annotated=False),
            _members(opened, annotated=True),
            title="GlaS",
            layout=_LAYOUT,
        )
        grades = _read_grades(opened)
        groups = {sample_id: grades[sample_id].patient for sample_id in pairs if sample_id in grades}
        return write_dataset(
            output_dir,
            INFO,
            [
                SampleJob(
                    sample_id,
                    partial(decode_pair, pair),
                    tissue=f"{grades[sample_id].grade} colon" if sample_id in grades else "colon",
                    group=groups.get(sample_id),
                )
                for sample_id, pair in sorted(pairs.items())
            ],
            sources=[opened],
            protocols=named_protocols(INFO, _splits(opened, pairs, validation_fraction), groups),
            protocol=protocol,
            conversion={"validation_fraction": validation_fraction},
            workers=workers,
        )


def _splits(source: Source, pairs: Mapping[str, object], validation_fraction: float) -> dict[str, Splits]:
    parts = {part: [key for key in pairs if key.startswith(f"{part}_")] for part in _PARTS.values()}
    test_a, test_b = parts["testA"], parts["testB"]
    check_counts("glas/train", source, {"images": len(parts["train"])})
    check_counts("glas/test", source, {"images": len(test_a) + len(test_b)})
    training, validation = last_fraction(parts["train"], validation_fraction)
    fitted = {"training": training, "validation": validation}
    return {
        "glas": {**fitted, "test": test_a + test_b},
        "glas_testA": {**fitted, "test": test_a},
        "glas_testB": {**fitted, "test": test_b},
    }


def _members(source: Source, *, annotated: bool) -> Iterator[tuple[str, str]]:
    """Yield ``(id, member name)`` of the annotations, or of the images."""
    for name, found in source.match(_MEMBER):
        if bool(found["annotation"]) == annotated:
            yield _sample_id(found), name


def _sample_id(found: re.Match[str]) -> str:
    return f"{_PARTS[found['part'].lower()]}_{int(found['number'])}"


def _read_grades(source: Source) -> dict[str, _Grade]:
    """Return ``{id: grade}``; empty where there is no ``Grade.csv``."""
    names = [name for name, _ in source.match(_GRADES_FILE)]
    if not names:
        return {}
    if len(names) > 1:
        raise DatasetError(f"{source.path}: {len(names)} files Grade.csv: {', '.join(names)}. Pass one copy.")
    where = source.where(names[0])
    text = source.read(names[0]).decode("utf-8-sig", errors="replace")
    header, *rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text))] or [[]]
    columns = [title.lower() for title in header]
    if not {"name", "patient id", "grade (glas)"} <= set(columns):
        raise DatasetError(f"{where}: columns {header}, expected name, patient ID and grade (GlaS).")
    grades = {}
    for row in filter(any, rows):
        values = dict(zip(columns, row, strict=False))
        found = _NAME.fullmatch(values["name"])
        patient, grade = values.get("patient id", ""), values.get("grade (glas)", "").lower()
        if found is None or not patient or grade not in _GRADES:
            raise DatasetError(f"{where}: row {row}, expected <image>, <patient>, {' or '.join(_GRADES)}.")
        grades[_sample_id(found)] = _Grade(f"patient_{patient}", grade)
    return grades
