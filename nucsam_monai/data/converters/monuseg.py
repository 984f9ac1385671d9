"""Convert MoNuSeg 2018: H&E images of 1000 x 1000 pixels at 40x with outlines in Aperio XML."""

import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from nucsam_monai.data.converters.conversion import (
    ConversionSummary,
    DatasetInfo,
    check_counts,
    write_dataset,
)
from nucsam_monai.data.converters.pairing import pair_by_name
from nucsam_monai.data.converters.polygons import AperioRegions, Overlap, paint_polygons, parse_regions
from nucsam_monai.data.converters.rasters import decode_rgb
from nucsam_monai.data.converters.sources import Source, open_source
from nucsam_monai.data.protocols import Protocol
from nucsam_monai.data.splits import last_fraction
from nucsam_monai.data.writer import Sample, SampleJob
from nucsam_monai.utils.errors import ConfigurationError, DatasetError

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


INFO = DatasetInfo(
    name="monuseg",
    title="MoNuSeg 2018: H&E of seven organs with outlines in Aperio XML",
    images="37 + 14 test",
    size_px="1000x1000",
    modality="H&E",
    magnification=40.0,
    mpp=0.25,
    licence="CC BY-NC-SA 4.0",
    citation="Kumar et al., A multi-organ nucleus segmentation challenge, IEEE TMI 39, 2020",
    obtain="https://monuseg.grand-challenge.org/Data",
    protocols={
        "monuseg30": "the 30 images of the first release, the last part of the sorted ids for validation; "
        "the 14 test images of the challenge",
        "monuseg37": "all training images, with the seven that were added later; the last part of the sorted "
        "ids for validation; the 14 test images of the challenge",
    },
)

_LAYOUT = "<id>.tif and <id>.xml, in one folder or in 'Tissue Images' and 'Annotations'"
_APART = "Pass the training archive as --source and the test archive as --test_source."
_MEMBER = re.compile(r"(?:.*/)?(?P<id>TCGA-[^/]+)\.(?P<kind>tif|tiff|xml)", re.IGNORECASE)


@dataclass(frozen=True)
class _Annotated:
    """An image and its annotated regions."""

    source: Source
    image: str
    regions: AperioRegions


def convert(
    source: Path | str,
    output_dir: Path | str,
    test_source: Path | str | None = None,
    *,
    protocol: str | None = None,
    validation_fraction: float = 0.15,
    overlap: Overlap = "first",
    workers: int = 1,
) -> ConversionSummary:
    """Convert the training archive and, where given, the test archive of the challenge.

    A pixel belongs to an outline if its centre is inside. Where outlines overlap the first one keeps the
    pixel, as in the challenge's own script. Outlines of fewer than three vertices and hidden outlines are
    dropped.

    Args:
        source: ``MoNuSeg 2018 Training Data.zip`` or the folder unpacked from it.
        output_dir: the dataset folder to write.
        test_source: ``MoNuSegTestData.zip`` or the folder unpacked from it; without it no test split.
        protocol: ``"monuseg30"`` (the default) trains on those of the 30 classic images that the archive
            holds; ``"monuseg37"`` on every image, with the seven that were added later.
        validation_fraction: part of the training images, the last of the sorted ids, for validation.
        overlap: which outline keeps a pixel that several claim, ``"first"`` or ``"last"``.
        workers: processes that decode and write.

    Raises:
        ConfigurationError: an option is unknown or out of range.
        DatasetError: a source is missing, damaged or of another layout, or ``output_dir`` is not empty.
    """
    if overlap not in get_args(Overlap):
        raise ConfigurationError(f"overlap '{overlap}': expected one of {', '.join(get_args(Overlap))}.")
    protocol = INFO.chosen_protocol(protocol)
    with ExitStack() as stack:
        sources = [stack.enter_context(open_source(source))]
        samples = _find_samples(sources[0], "monuseg/train")
        training = {"monuseg30": _classic(samples), "monuseg37": list(samples)}
        if not training[protocol]:
            raise DatasetError(
                f"{source}: none of its {len(samples)} images is one of the 30 classic training images. {_APART}"
            )
        mixed = sorted(sample.image for sample in samples.values() if "test" in sample.image.lower())
        if mixed:  # an archive or folder of that name
            raise DatasetError(
                f"{source}: {len(mixed)} images for testing next to those for training, first {mixed[0]}. {_APART}"
            )
        tests: dict[str, _Annotated] = {}
        if test_source:
            sources.append(stack.enter_context(open_source(test_source)))
            tests = _find_samples(sources[-1], "monuseg/test")
            if both := sorted(set(tests) & set(training[protocol])):
                raise DatasetError(
                    f"{test_source}: {len(both)} test images are in {source} too, first {both[0]}."
                )
        samples |= tests
        jobs = [
            SampleJob(
                sample_id, partial(_decode, sample, overlap), tissue_of(sample_id), patient_of(sample_id)
            )
            for sample_id, sample in sorted(samples.items())
        ]
        return write_dataset(
            output_dir,
            INFO,
            jobs,
            sources=sources,
            protocols={
                name: _protocol(name, ids, validation_fraction, tests)
                for name, ids in training.items()
                if ids
            },
            protocol=protocol,
            conversion={"overlap": overlap, "validation_fraction": validation_fraction},
            workers=workers,
        )


def _protocol(name: str, ids: Iterable[str], validation_fraction: float, tests: Iterable[str]) -> Protocol:
    training, validation = last_fraction(set(ids) - set(tests), validation_fraction)
    splits = {"training": training, "validation": validation, "test": tests}
    return Protocol.from_splits(splits, INFO.protocols[name])


def _find_samples(source: Source, part: str) -> dict[str, _Annotated]:
    """Pair images and annotations by name, read the annotations, and check the counts of the source."""
    files: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for name, found in source.match(_MEMBER):
        files[found["kind"].lower() == "xml"].append((found["id"].upper(), name))
    pairs = pair_by_name(
        source, files[False], files[True], title="MoNuSeg", layout=_LAYOUT, labels_are="annotation"
    )
    samples = {}
    for sample_id, pair in pairs.items():
        regions = parse_regions(source.read(pair.labels), source.where(pair.labels))
        samples[sample_id] = _Annotated(source, pair.image, regions)
    regions_found = sum(sample.regions.region_count for sample in samples.values())
    check_counts(part, source, {"images": len(samples), "regions": regions_found})
    return samples


def _classic(samples: Iterable[str]) -> list[str]:
    return [sample_id for sample_id in samples if patient_of(sample_id) in CLASSIC_PATIENTS]


def _decode(sample: _Annotated, overlap: Overlap) -> Sample:
    image = decode_rgb(sample.source.read(sample.image), sample.source.where(sample.image))
    polygons = sample.regions.polygons
    instances = paint_polygons(polygons, image.shape[:2], overlap)
    dropped = {
        "regions with fewer than 3 vertices": sample.regions.region_count - len(polygons),
        "hidden regions": len(polygons) - int(np.count_nonzero(np.unique(instances))),
    }
    return Sample(image, instances, dropped=dropped)
