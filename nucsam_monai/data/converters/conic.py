"""Convert CoNIC (Lizard): H&E patches of colon at 20x with six classes of nuclei, as arrays and a table of patches."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nucsam_monai.data.converters.conversion import (
    ConversionSummary,
    DatasetInfo,
    check_counts,
    write_dataset,
)
from nucsam_monai.data.converters.rasters import ids_row, majority_values, open_npy, rgb_row
from nucsam_monai.data.converters.sources import Source, open_source
from nucsam_monai.data.protocols import Protocol
from nucsam_monai.data.splits import stratified_shuffle
from nucsam_monai.data.writer import Sample, SampleJob
from nucsam_monai.utils.errors import DatasetError

_SEED = 5  # that of the challenge's baseline

INFO = DatasetInfo(
    name="conic",
    title="CoNIC 2022: H&E patches of colon with six classes of nuclei, from Lizard",
    images="4981",
    size_px="256x256",
    modality="H&E",
    magnification=20.0,
    mpp=0.5,
    licence="CC BY-NC-SA 4.0",
    citation="Graham et al., CoNIC challenge: pushing the frontiers of nuclear detection, segmentation, "
    "classification and counting, Medical Image Analysis 92, 2024",
    obtain="https://conic-challenge.grand-challenge.org/Data (images.npy, labels.npy, patch_info.csv)",
    protocols={
        "by_source_image": "80/10/10 by source image: the training images of the challenge's baseline, and the "
        f"others halved in the same way, stratified by cohort with seed {_SEED}",
        "by_source_image_70_15_15": f"70/15/15 by source image, stratified by cohort with seed {_SEED}",
        "challenge_80_20": "the first split of the challenge's baseline, 80/20 by source image, stratified by "
        f"cohort with seed {_SEED}; no test images",
    },
    class_names=("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective"),
)

_LAYOUT = "images.npy, labels.npy and patch_info.csv"
_MEMBER = re.compile(r"(?:.*/)?(?P<name>images\.npy|labels\.npy|patch_info\.csv)", re.IGNORECASE)
_PATCH = re.compile(r"(?P<image>(?P<cohort>[^_]+).*)-\d+")
_COLUMN = "patch_info"


@dataclass(frozen=True)
class _Patch:
    """The name of a patch, the source image that it was cut from, and the cohort of that image."""

    name: str
    image: str
    cohort: str


def convert(
    source: Path | str, output_dir: Path | str, *, protocol: str | None = None, workers: int = 1
) -> ConversionSummary:
    """Convert the arrays of the training set; the class of a nucleus is that of most of its pixels.

    Patches of one source image overlap, so every split keeps them together.

    Args:
        source: the folder with ``images.npy``, ``labels.npy`` and ``patch_info.csv``, or an archive of it.
        output_dir: the dataset folder to write.
        protocol: ``"by_source_image"`` (the default, 80/10/10), ``"by_source_image_70_15_15"``, or
            ``"challenge_80_20"``, which has no test images.
        workers: processes that write.

    Raises:
        ConfigurationError: the protocol is unknown.
        DatasetError: the source is missing, damaged or of another layout, or ``output_dir`` is not empty.
    """
    with open_source(source) as opened:
        files = _find_files(opened)
        patches = _read_patches(opened, files["patch_info.csv"])
        _check_shapes(opened, files, len(patches))
        check_counts("conic", opened, {"images": len(patches)})
        return write_dataset(
            output_dir,
            INFO,
            _jobs(opened, files, patches),
            sources=[opened],
            protocols=_protocols(patches),
            protocol=protocol,
            conversion={"class_vote": "majority of pixels", "seed": _SEED},
            total=len(patches),
            workers=workers,
        )


def _protocols(patches: Iterable[_Patch]) -> dict[str, Protocol]:
    names_of_image: dict[str, list[str]] = {}
    cohort_of_image: dict[str, str] = {}
    for patch in patches:
        names_of_image.setdefault(patch.image, []).append(patch.name)
        cohort_of_image[patch.image] = patch.cohort

    def cut(images: Sequence[str], fraction: float) -> tuple[list[str], list[str]]:
        """Divide source images in two, each cohort in the same proportion."""
        ordered = sorted(images)
        parts = stratified_shuffle([cohort_of_image[image] for image in ordered], fraction, _SEED)
        first, second = ([ordered[index] for index in part] for part in parts)
        return first, second

    def protocol(name: str, **images: Sequence[str]) -> Protocol:
        ids = {split: [n for image in part for n in names_of_image[image]] for split, part in images.items()}
        return Protocol.from_splits(ids, INFO.protocols[name])

    everything = sorted(names_of_image)
    protocols = {}
    for name, fraction in (("by_source_image", 0.8), ("by_source_image_70_15_15", 0.7)):
        training, held_out = cut(everything, fraction)
        validation, test = cut(held_out, 0.5)
        protocols[name] = protocol(name, training=training, validation=validation, test=test)
    training, validation = cut(everything, 0.8)
    protocols["challenge_80_20"] = protocol("challenge_80_20", training=training, validation=validation)
    return protocols


def _find_files(source: Source) -> dict[str, str]:
    """Return the member name of each of the three files."""
    files: dict[str, str] = {}
    for name, found in source.match(_MEMBER):
        if files.setdefault(found["name"].lower(), name) != name:
            raise DatasetError(
                f"{source.path}: {files[found['name'].lower()]} and {name}, expected one folder with {_LAYOUT}."
            )
    if "images.npy" not in files or "labels.npy" not in files:
        raise source.refusal("CoNIC", _LAYOUT)
    if "patch_info.csv" not in files:
        raise DatasetError(
            f"{source.path}: no patch_info.csv. It says which patches overlap, and without it they cannot be kept "
            "in one split; it is part of the download."
        )
    return files


def _read_patches(source: Source, name: str) -> list[_Patch]:
    """Read the column of names ``<source image>-<index>``, one row per patch."""
    where = source.where(name)
    try:
        rows = [row for row in csv.reader(io.StringIO(source.read(name).decode("utf-8-sig"))) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{where}: not a readable table ({error}).") from error
    if not rows or _COLUMN not in rows[0]:
        raise DatasetError(f"{where}: no column '{_COLUMN}' in its first line {rows[:1]}.")
    column = rows[0].index(_COLUMN)
    patches = []
    for row in rows[1:]:
        text = row[column] if column < len(row) else ""
        found = _PATCH.fullmatch(text)
        if not found:
            raise DatasetError(f"{where}: patch {text!r}, expected '<source image>-<index>'.")
        patches.append(_Patch(text, found["image"], found["cohort"]))
    return patches


def _check_shapes(source: Source, files: dict[str, str], count: int) -> None:
    with open_npy(source, files["images.npy"]) as images, open_npy(source, files["labels.npy"]) as labels:
        if images.shape != (count, *labels.shape[1:3], 3) or labels.shape != (*images.shape[:3], 2):
            raise DatasetError(
                f"{source.path}: images {images.shape}, labels {labels.shape} and {count} patches in "
                "patch_info.csv; expected (N, H, W, 3), (N, H, W, 2) and N."
            )


def _jobs(source: Source, files: dict[str, str], patches: Sequence[_Patch]) -> Iterator[SampleJob]:
    with open_npy(source, files["images.npy"]) as images, open_npy(source, files["labels.npy"]) as labels:
        for patch, image, label in zip(patches, images, labels, strict=True):
            rgb = rgb_row(image, f"{source.where(files['images.npy'])}, {patch.name}")
            where = f"{source.where(files['labels.npy'])}, {patch.name}"
            decode = partial(_decode, rgb, ids_row(label, where), where)
            yield SampleJob(patch.name, decode, tissue="colon", group=patch.image)


def _decode(image: np.ndarray, label: np.ndarray, where: str) -> Sample:
    instances, values = label[..., 0], label[..., 1]
    if values.max(initial=0) > len(INFO.class_names):
        raise DatasetError(f"{where}: class {values.max()}, expected 1 to {len(INFO.class_names)}.")
    majority = majority_values(instances, values, where)
    return Sample(image, instances, {instance_id: value - 1 for instance_id, value in majority.items()})
