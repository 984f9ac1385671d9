"""Convert SegPC-2021: plasma cells in stained bone marrow, one mask per cell with its nucleus and cytoplasm."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np

from nucsam_monai.data.converters.conversion import (
    ConversionSummary,
    DatasetInfo,
    Splits,
    check_counts,
    named_protocols,
    write_dataset,
)
from nucsam_monai.data.converters.pairing import check_size, part_of
from nucsam_monai.data.converters.rasters import decode_first_channel, decode_rgb
from nucsam_monai.data.converters.sources import Source, open_source
from nucsam_monai.data.splits import SPLIT_SEED, TRAIN_80_10_10, random_split
from nucsam_monai.data.writer import Sample, SampleJob
from nucsam_monai.utils.errors import ConfigurationError, DatasetError

Target = Literal["parts", "cell", "nucleus", "cytoplasm"]
"""What becomes an instance: the nucleus and the cytoplasm of every cell, the whole cell, or only one part."""

INFO = DatasetInfo(
    name="segpc",
    title="SegPC-2021: plasma cells of multiple myeloma with nucleus and cytoplasm",
    images="298 + 200 validation",
    size_px="2040x1536 and 2560x1920",
    modality="Jenner-Giemsa stained bone marrow",
    magnification=None,
    mpp=None,
    licence="for research, by the terms of the challenge",
    citation="Gupta et al., SegPC-2021: a challenge and dataset on segmentation of multiple myeloma plasma "
    "cells from microscopic images, Medical Image Analysis 83, 2023",
    obtain="https://segpc-2021.grand-challenge.org (train.zip and validation.zip)",
    protocols={
        "random_80_10_10": "80/10/10 of the training and validation images, sorted ids shuffled with seed",
        "challenge": "all training images of the challenge, no validation; its validation images as test",
    },
    class_names=("nucleus", "cytoplasm"),
)

_NUCLEUS_VALUE, _CYTOPLASM_VALUE = 40, 20
_CLASS_NAMES: Mapping[str, tuple[str, ...]] = {
    "parts": INFO.class_names,
    "cell": ("cell",),
    "nucleus": ("nucleus",),
    "cytoplasm": ("cytoplasm",),
}

_LAYOUT = "{train,validation}/x/<image>.bmp and {train,validation}/y/<image>_<cell>.bmp"
_MEMBER = re.compile(r"(?:.*/)?(?P<kind>[xy])/(?P<stem>[^/]+)\.(?:bmp|png|tiff?|jpe?g)", re.IGNORECASE)
_PARTS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass
class _Cells:
    """Member names of one image and of the masks of its cells by the number of the cell."""

    image: str | None = None
    masks: dict[int, str] = field(default_factory=dict)


def convert(
    source: Path | str,
    output_dir: Path | str,
    *,
    target: Target = "parts",
    protocol: str | None = None,
    seed: int = SPLIT_SEED,
    workers: int = 1,
) -> ConversionSummary:
    """Convert the training and validation images, whose ids become ``<part>_<image>``.

    Cells overlap. Of several cells at a pixel the one with the highest number is kept. With ``"parts"`` the
    nucleus and the cytoplasm of a cell are two instances of the classes ``nucleus`` and ``cytoplasm``, and
    every nucleus lies over every cytoplasm, so the two class maps are the semantic masks: the union of the
    nuclei, and the union of the cytoplasms without them. ``"nucleus"`` and ``"cytoplasm"`` keep the instances
    of that class only; ``"cell"`` makes one instance of both parts. The test images of the challenge have no
    masks and are skipped.

    Args:
        source: a folder with ``train.zip`` and ``validation.zip``, the folder unpacked from them, or an
            archive of both.
        output_dir: the dataset folder to write.
        target: the instances: ``"parts"``, ``"cell"``, ``"nucleus"`` or ``"cytoplasm"``.
        protocol: ``"random_80_10_10"`` (the default) or ``"challenge"``.
        seed: seed of the random split.
        workers: processes that decode and write; each takes up to about 200 MB.

    Raises:
        ConfigurationError: an option is unknown, or the source has no images for the protocol.
        DatasetError: the source is missing, damaged or of another layout, or ``output_dir`` is not empty.
    """
    if target not in get_args(Target):
        raise ConfigurationError(f"target '{target}': expected one of {', '.join(get_args(Target))}.")
    with open_source(source) as opened:
        samples = _find_samples(opened)
        train, validation = (
            [sample_id for sample_id in samples if sample_id.startswith(part)]
            for part in ("train_", "validation_")
        )
        check_counts("segpc/train", opened, {"images": len(train)})
        check_counts("segpc/validation", opened, {"images": len(validation)})
        splits: dict[str, Splits] = {
            "random_80_10_10": random_split(samples, TRAIN_80_10_10, seed),
            "challenge": {"training": train, "test": validation},
        }
        return write_dataset(
            output_dir,
            INFO,
            [
                SampleJob(sample_id, partial(_decode, opened, image, masks, target), tissue="bone marrow")
                for sample_id, (image, masks) in sorted(samples.items())
            ],
            sources=[opened],
            protocols=named_protocols(INFO, splits),
            protocol=protocol,
            class_names=_CLASS_NAMES[target],
            conversion={"target": target, "overlap": "last cell, nuclei over cytoplasms", "seed": seed},
            workers=workers,
        )


def _find_samples(source: Source) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return ``{id: (image, masks in the order of the cells)}`` without the test images of the challenge."""
    found = _find_cells(source)
    if not any(cells.image for cells in found.values()):
        raise source.refusal("a SegPC-2021 archive", _LAYOUT)
    unlabelled_test = {key for key, cells in found.items() if key.startswith("test_") and not cells.masks}
    samples = {}
    for sample_id, cells in found.items():
        if sample_id in unlabelled_test:
            continue
        if cells.image is None:
            mask = next(iter(cells.masks.values()))
            raise DatasetError(f"{source.where(mask)}: its image is missing. Expected {_LAYOUT}.")
        if not cells.masks:
            raise DatasetError(
                f"{source.where(cells.image)}: the masks of its cells are missing. Expected {_LAYOUT}."
            )
        samples[sample_id] = (cells.image, tuple(cells.masks[cell] for cell in sorted(cells.masks)))
    if not samples:
        raise DatasetError(f"{source.path}: only test images, which have no masks. Expected {_LAYOUT}.")
    return samples


def _find_cells(source: Source) -> dict[str, _Cells]:
    """Gather images and masks by ``<part>_<image>``; a mask is ``<image>_<cell>``, cut at the last underscore."""
    found: dict[str, _Cells] = {}
    for name, part, kind, stem in _members(source):
        if kind == "x":
            cells = found.setdefault(f"{part}_{stem}", _Cells())
            if cells.image is not None:
                raise DatasetError(
                    f"{source.path}: one image twice: {cells.image} and {name}. Pass one copy."
                )
            cells.image = name
            continue
        image, _, cell = stem.rpartition("_")
        if not image or not cell.isdecimal():
            raise DatasetError(f"{source.where(name)}: not the mask of a cell, expected <image>_<cell>.bmp.")
        masks = found.setdefault(f"{part}_{image}", _Cells()).masks
        if int(cell) in masks:
            raise DatasetError(
                f"{source.path}: one cell twice: {masks[int(cell)]} and {name}. Pass one copy."
            )
        masks[int(cell)] = name
    return found


def _members(source: Source) -> Iterator[tuple[str, str, str, str]]:
    """Yield ``(member name, part, "x" or "y", stem)``."""
    for name, found in source.match(_MEMBER):
        part = part_of(source, name, _PARTS)
        if part is None:
            raise DatasetError(f"{source.where(name)}: in no folder train or validation. Expected {_LAYOUT}.")
        yield name, part, found["kind"].lower(), found["stem"].lower()


def _decode(source: Source, image_name: str, masks: tuple[str, ...], target: Target) -> Sample:
    """Paint the cells in their order, one mask in memory at a time: an image has five million pixels."""
    image = decode_rgb(source.read(image_name), source.where(image_name))
    maps = {kind: np.zeros(image.shape[:2], dtype=np.uint16) for kind in ("cell", "nucleus", "cytoplasm")}
    annotated: Counter[str] = Counter()
    for cell, name in enumerate(masks, start=1):
        mask, window = _read_mask(source, name, image.shape[:2])
        for kind, region in (
            ("cell", mask > 0),
            ("nucleus", mask == _NUCLEUS_VALUE),
            ("cytoplasm", mask == _CYTOPLASM_VALUE),
        ):
            maps[kind][window][region] = cell
            annotated[kind] += int(region.any())
    maps["cytoplasm"][maps["nucleus"] > 0] = 0
    if target == "parts":
        instances, classes = _parts(maps["nucleus"], maps["cytoplasm"])
        expected = annotated["nucleus"] + annotated["cytoplasm"]
    else:
        instances, classes, expected = maps[target], None, annotated[target]
    dropped = {
        "empty masks": len(masks) - annotated["cell"],
        "hidden cells or parts": expected - int(np.count_nonzero(np.unique(instances))),
    }
    return Sample(image, instances, classes, dropped)


def _parts(nuclei: np.ndarray, cytoplasms: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
    """Return one map, where nucleus k is instance 2k and its cytoplasm 2k + 1, and the class of each."""
    instances = 2 * nuclei.astype(np.int32)
    is_cytoplasm = cytoplasms > 0
    instances[is_cytoplasm] = 2 * cytoplasms[is_cytoplasm].astype(np.int32) + 1
    return instances, {key: key % 2 for key in np.unique(instances).tolist() if key}


def _read_mask(source: Source, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Return the mask of a cell inside its bounding box, and that box: a cell is a small part of its image."""
    where = source.where(name)
    # Of three channels the first, as the others repeat it.
    mask = decode_first_channel(source.read(name), where)
    check_size(mask.shape, shape, where)
    left, top, width, height = cv2.boundingRect((mask != 0).view(np.uint8))
    window = (slice(top, top + height), slice(left, left + width))
    if unknown := sorted(set(np.unique(mask[window]).tolist()) - {0, _CYTOPLASM_VALUE, _NUCLEUS_VALUE}):
        raise DatasetError(
            f"{where}: values {unknown[:5]}, expected 0, {_CYTOPLASM_VALUE} (cytoplasm) and "
            f"{_NUCLEUS_VALUE} (nucleus)."
        )
    return mask[window], window
