"""Convert CryoNuSeg: cryosectioned H&E of ten organs, annotated three times."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from nucsam_monai.data.converters.conversion import (
    ConversionSummary,
    DatasetInfo,
    check_counts,
    write_dataset,
)
from nucsam_monai.data.converters.pairing import Pair, decode_pair, pair_by_name
from nucsam_monai.data.converters.sources import IMAGEJ_ARCHIVES, Source, open_source
from nucsam_monai.data.protocols import Protocol
from nucsam_monai.data.splits import shuffled_folds
from nucsam_monai.data.writer import SampleJob
from nucsam_monai.utils.errors import ConfigurationError, DatasetError

Annotation = Literal["biologist", "biologist_second_round", "bioinformatician"]
"""The three mark-ups: annotator 1, annotator 1 again, annotator 2."""

_EXPERIMENTS = 10
_SEED = 19  # the authors of the dataset publish their folds of another one, NuInsSeg, with this seed

INFO = DatasetInfo(
    name="cryonuseg",
    title="CryoNuSeg: cryosectioned H&E of ten organs, annotated three times",
    images="30",
    size_px="512x512",
    modality="H&E, frozen sections",
    magnification=40.0,
    mpp=0.25,
    licence="CC BY-NC-SA 4.0",
    citation="Mahbod et al., CryoNuSeg: a dataset for nuclei instance segmentation of cryosectioned H&E-stained "
    "histological images, Computers in Biology and Medicine 132, 2021",
    obtain="https://www.kaggle.com/datasets/ipateam/segmentation-of-nuclei-in-cryosectioned-he-images",
    protocols={
        "zero_shot": "all images are test images of models that never saw the dataset",
        **{
            f"experiment{number}": f"fold {number} of ten for testing, the next one for validation; three images "
            f"each, sorted names shuffled as by scikit-learn's KFold with seed {_SEED}"
            for number in range(1, _EXPERIMENTS + 1)
        },
    },
)

_LAYOUT = "'tissue images/<id>.tif' and 'Annotator 1 (biologist)/label masks modify/<id>.tif'"
_MEMBER = re.compile(
    r"(?P<folder>(?:.*/)?)(?P<kind>tissue|label)[ _](?:images|masks[ _]modify)/(?P<id>[^/]+)\.(?:tiff?|png)",
    re.IGNORECASE,
)
_ID = re.compile(r"Human_(?P<organ>[A-Za-z]+)_\d+", re.IGNORECASE)


def convert(
    source: Path | str,
    output_dir: Path | str,
    *,
    annotation: Annotation = "biologist",
    protocol: str | None = None,
    workers: int = 1,
) -> ConversionSummary:
    """Convert the images with one of the three mark-ups, from the folder ``label masks modify``.

    That folder is the ground truth that the authors name; in ``label masks`` overlaps have ids of their own.

    Args:
        source: the archive from Kaggle or the folder unpacked from it.
        output_dir: the dataset folder to write.
        annotation: the mark-up: ``"biologist"`` (the default), ``"biologist_second_round"`` or
            ``"bioinformatician"``.
        protocol: ``"zero_shot"`` (the default) or ``"experiment1"`` to ``"experiment10"``. Which three images
            each of the published experiments tests is not known; these are drawn as in :data:`INFO`.
        workers: processes that decode and write.

    Raises:
        ConfigurationError: an option is unknown.
        DatasetError: the source is missing, damaged or of another layout, or ``output_dir`` is not empty.
    """
    if annotation not in get_args(Annotation):
        raise ConfigurationError(
            f"annotation '{annotation}': expected one of {', '.join(get_args(Annotation))}."
        )
    with open_source(source, without=IMAGEJ_ARCHIVES) as opened:
        pairs = _find_pairs(opened, annotation)
        check_counts("cryonuseg", opened, {"images": len(pairs)})
        return write_dataset(
            output_dir,
            INFO,
            [
                SampleJob(sample_id, partial(decode_pair, pair), _tissue(sample_id))
                for sample_id, pair in pairs.items()
            ],
            sources=[opened],
            protocols=_protocols(list(pairs)),
            protocol=protocol,
            conversion={"annotation": annotation},
            workers=workers,
        )


def _protocols(ids: Sequence[str]) -> dict[str, Protocol]:
    """Return the protocols; the experiments only if there are images for ten."""
    protocols = {"zero_shot": Protocol.from_splits({"test": ids}, INFO.protocols["zero_shot"])}
    if len(ids) < _EXPERIMENTS:
        return protocols
    folds = [{ids[index] for index in fold} for fold in shuffled_folds(len(ids), _EXPERIMENTS, _SEED)]
    for position, test in enumerate(folds):
        validation = folds[(position + 1) % _EXPERIMENTS]
        splits = {"training": set(ids) - test - validation, "validation": validation, "test": test}
        name = f"experiment{position + 1}"
        protocols[name] = Protocol.from_splits(splits, INFO.protocols[name])
    return protocols


def _find_pairs(source: Source, annotation: Annotation) -> dict[str, Pair]:
    """Pair the images with the label maps of one mark-up, which lies in a separate folder at any depth."""
    images: list[tuple[str, str]] = []
    label_maps: dict[Annotation | None, list[tuple[str, str]]] = {}
    for name, found in source.match(_MEMBER):
        if found["kind"].lower() == "tissue":
            images.append((found["id"], name))
        else:
            label_maps.setdefault(_annotation_of(found["folder"]), []).append((found["id"], name))
    if None in label_maps and len(label_maps) == 1:
        # The first release had the first mark-up only, without a folder for the annotator.
        label_maps = {"biologist": label_maps[None]}
    if images and annotation not in label_maps:
        there = ", ".join(name for name in label_maps if name) or "none"
        raise DatasetError(f"{source.path}: no mark-up '{annotation}', it has {there}. Expected {_LAYOUT}.")
    labels = label_maps.get(annotation, [])
    return pair_by_name(source, images, labels, title="CryoNuSeg", layout=_LAYOUT)


def _annotation_of(folder: str) -> Annotation | None:
    words = folder.lower().replace("_", " ")
    if "second round" in words:
        return "biologist_second_round"
    if "annotator 2" in words or "bioinformatician" in words:
        return "bioinformatician"
    return "biologist" if "annotator 1" in words or "biologist" in words else None


def _tissue(sample_id: str) -> str | None:
    """Return the organ of ``Human_<Organ>_<number>``, for example ``"adrenal gland"``."""
    found = _ID.fullmatch(sample_id)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", found["organ"]).lower() if found else None
