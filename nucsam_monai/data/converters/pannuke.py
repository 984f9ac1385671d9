"""Convert PanNuke: three folds of H&E patches of 19 tissues, as arrays with one channel of ids per class."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
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
from nucsam_monai.data.converters.rasters import ids_row, open_npy, rgb_row
from nucsam_monai.data.converters.sources import Source, open_source
from nucsam_monai.data.label_files import renumber
from nucsam_monai.data.protocols import Protocol
from nucsam_monai.data.writer import Sample, SampleJob
from nucsam_monai.utils.errors import DatasetError

_logger = logging.getLogger(__name__)

_INCOMPLETE = "incomplete"
_ROLES = {"fold1": (1, 2, 3), "fold2": (2, 1, 3), "fold3": (3, 2, 1)}
"""``{protocol: (training fold, validation fold, test fold)}``."""

INFO = DatasetInfo(
    name="pannuke",
    title="PanNuke: H&E patches of 19 tissues with five classes of nuclei, in three folds",
    images="7901 (2656 + 2523 + 2722)",
    size_px="256x256",
    modality="H&E",
    magnification=40.0,
    mpp=0.25,
    licence="CC BY-NC-SA 4.0",
    citation="Gamper et al., PanNuke dataset extension, insights and baselines, arXiv:2003.10778, 2020",
    obtain="https://warwick.ac.uk/fac/cross_fac/tia/data/pannuke (fold_1.zip, fold_2.zip, fold_3.zip)",
    protocols={
        **{
            name: f"folds as published: train on {training}, validate on {validation}, test on {test}"
            for name, (training, validation, test) in _ROLES.items()
        },
        _INCOMPLETE: "where a fold is missing: train on fold 1, validate on fold 2, test on fold 3",
    },
    class_names=("neoplastic", "inflammatory", "connective", "dead", "epithelial"),
)

_LAYOUT = (
    "'Fold <1-3>/images/fold<1-3>/images.npy' and 'types.npy' and 'Fold <1-3>/masks/fold<1-3>/masks.npy'"
)
_KINDS = ("images", "masks", "types")
_MEMBER = re.compile(r"(?:.*/)?(?P<kind>images|masks|types)\.npy", re.IGNORECASE)
_FOLD = re.compile(r"fold[ _-]*([1-3])(?!\d)", re.IGNORECASE)


@dataclass(frozen=True)
class _Fold:
    """The arrays of one fold, by member name, and the tissue of each image."""

    source: Source
    number: int
    images: str
    masks: str
    tissues: tuple[str, ...]

    @property
    def ids(self) -> list[str]:
        return [f"fold{self.number}_{row:04d}" for row in range(len(self.tissues))]


def convert(
    source: Path | str, output_dir: Path | str, *, protocol: str | None = None, workers: int = 1
) -> ConversionSummary:
    """Convert those of the three folds that the source holds.

    The five channels of ids are painted in their order, each with ids past those of the channels before; where
    nuclei overlap the later channel keeps the pixel. The class of a nucleus is the channel it came from.
    Completely hidden nuclei are dropped, fragments of a few pixels are kept: the official metrics count them.

    The arrays, several gigabytes per fold, are read image by image.

    Args:
        source: a folder with ``fold_1.zip``, ``fold_2.zip`` and ``fold_3.zip``, one archive with all of them, the
            folder unpacked from them, or a single fold.
        output_dir: the dataset folder to write.
        protocol: ``"fold1"`` (the default), ``"fold2"`` or ``"fold3"``, by the training fold. Where folds are
            missing, ``"incomplete"`` is the only one.
        workers: processes that make the instance maps and write.

    Raises:
        ConfigurationError: the protocol is unknown or needs folds that the source lacks.
        DatasetError: the source is missing, damaged or of another layout, or ``output_dir`` is not empty.
    """
    with open_source(source) as opened:
        folds = _find_folds(opened)
        return write_dataset(
            output_dir,
            INFO,
            _jobs(folds),
            sources=[opened],
            protocols=_protocols({fold.number: fold.ids for fold in folds}),
            protocol=protocol,
            conversion={"overlap": "last class", "folds": [fold.number for fold in folds]},
            total=sum(len(fold.tissues) for fold in folds),
            workers=workers,
        )


def _protocols(ids_of_fold: Mapping[int, list[str]]) -> dict[str, Protocol]:
    """Return the published protocols, or the one for incomplete sources with the roles of the first."""
    complete = len(ids_of_fold) == len(_ROLES)
    if not complete:
        _logger.warning("Only fold %s found: no published protocol.", " and ".join(map(str, ids_of_fold)))
    roles = _ROLES if complete else {_INCOMPLETE: _ROLES["fold1"]}
    return {
        name: Protocol.from_splits(
            {
                split: ids_of_fold.get(fold, [])
                for split, fold in zip(("training", "validation", "test"), folds, strict=True)
            },
            INFO.protocols[name],
        )
        for name, folds in roles.items()
    }


def _find_folds(source: Source) -> list[_Fold]:
    """Find the three arrays of each fold, and check their shapes and the counts of the source."""
    arrays: dict[int, dict[str, str]] = {}
    for name, found in source.match(_MEMBER):
        numbers = _FOLD.findall(f"{source.path.absolute().name}/{name}")
        if not numbers:
            raise DatasetError(
                f"{source.where(name)}: no name on its path says which fold; expected {_LAYOUT}."
            )
        fold = arrays.setdefault(int(numbers[-1]), {})
        kind = found["kind"].lower()
        if kind in fold:
            raise DatasetError(
                f"{source.path}: {kind} of fold {numbers[-1]} twice, {fold[kind]} and {name}; "
                "pass a folder with either the archives or what was unpacked from them."
            )
        fold[kind] = name
    if not arrays:
        raise source.refusal("PanNuke", _LAYOUT)
    for number, files in sorted(arrays.items()):
        if missing := [f"{kind}.npy" for kind in _KINDS if kind not in files]:
            raise DatasetError(f"{source.path}: fold {number} has no {' and no '.join(missing)}.")
    return [_read_fold(source, number, files) for number, files in sorted(arrays.items())]


def _read_fold(source: Source, number: int, files: Mapping[str, str]) -> _Fold:
    tissues = _read_tissues(source, files["types"])
    with open_npy(source, files["images"]) as images, open_npy(source, files["masks"]) as masks:
        if images.shape != (len(tissues), *masks.shape[1:3], 3) or masks.shape != (*images.shape[:3], 6):
            raise DatasetError(
                f"{source.path}: fold {number} has images {images.shape}, masks {masks.shape} and "
                f"{len(tissues)} tissues; expected (N, H, W, 3), (N, H, W, 6) and N."
            )
    check_counts(f"pannuke/fold{number}", source, {"images": len(tissues)})
    return _Fold(source, number, files["images"], files["masks"], tissues)


def _read_tissues(source: Source, name: str) -> tuple[str, ...]:
    with open_npy(source, name) as rows:
        if rows.dtype.kind not in "US" or len(rows.shape) != 1:
            raise DatasetError(
                f"{source.where(name)}: holds {rows.dtype} {rows.shape}, expected the tissues' names."
            )
        return tuple(str(row.astype(str)) for row in rows)


def _jobs(folds: Iterable[_Fold]) -> Iterator[SampleJob]:
    """Yield the images in their order, as small as they can be sent to another process."""
    for fold in folds:
        source = fold.source
        with open_npy(source, fold.images) as images, open_npy(source, fold.masks) as masks:
            rows = zip(fold.ids, fold.tissues, images, masks, strict=True)
            for row, (sample_id, tissue, image, channels) in enumerate(rows):
                rgb = rgb_row(image, f"{source.where(fold.images)}, image {row}")
                ids = ids_row(
                    channels[..., : len(INFO.class_names)], f"{source.where(fold.masks)}, image {row}"
                )
                yield SampleJob(sample_id, partial(_decode, rgb, ids), tissue, fold=f"fold{fold.number}")


def _decode(image: np.ndarray, channels: np.ndarray) -> Sample:
    """Paint the channels of ids ``(H, W, 5)`` over each other; the class of an instance is its channel."""
    instances = np.zeros(channels.shape[:2], dtype=np.int32)
    classes: dict[int, int] = {}
    for class_id in range(channels.shape[2]):
        numbered, new_ids = renumber(channels[..., class_id])
        offset = len(classes)
        classes |= {offset + new_id: class_id for new_id in new_ids.values()}
        np.copyto(instances, numbered + offset, where=numbered > 0)
    visible = np.unique(instances[instances > 0]).tolist()
    return Sample(
        image,
        instances,
        {instance_id: classes[instance_id] for instance_id in visible},
        dropped={"hidden nuclei": len(classes) - len(visible)},
    )
