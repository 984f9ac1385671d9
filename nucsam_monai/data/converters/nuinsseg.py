"""Convert NuInsSeg: H&E of 31 human and mouse organs, one folder per organ."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from nucsam_monai.data.converters.conversion import (
    ConversionSummary,
    DatasetInfo,
    check_counts,
    write_dataset,
)
from nucsam_monai.data.converters.pairing import Pair, decode_pair, pair_by_name
from nucsam_monai.data.converters.sources import IMAGEJ_ARCHIVES, Source, open_source
from nucsam_monai.data.protocols import Protocol
from nucsam_monai.data.splits import SPLIT_SEED, random_split, shuffled_folds, split_counts
from nucsam_monai.data.writer import SampleJob

_FOLDS = 5
_FOLD_SEED = 19  # that of the authors' recommendation
_PER_ORGAN: Mapping[str, float] = {"training": 0.7, "validation": 0.15, "test": 0.15}
_WITHOUT_TEST: Mapping[str, float] = {"training": 0.875, "validation": 0.125}

INFO = DatasetInfo(
    name="nuinsseg",
    title="NuInsSeg: H&E of 31 human and mouse organs",
    images="665",
    size_px="512x512",
    modality="H&E",
    magnification=40.0,
    mpp=None,
    licence="CC BY 4.0",
    citation="Mahbod et al., NuInsSeg: a fully annotated dataset for nuclei instance segmentation in H&E-stained "
    "histological images, Scientific Data 11, 2024",
    obtain="https://www.kaggle.com/datasets/ipateam/nuinsseg or https://zenodo.org/records/10518968",
    protocols={
        "per_organ_70_15_15": "70/15/15 of each organ in the order of the sorted names",
        **{
            f"five_fold_{number}": f"fold {number} of the five that the authors recommend (KFold, shuffled with "
            f"random_state {_FOLD_SEED}) of the images sorted by organ and name for testing; an eighth of the "
            f"others, drawn with seed {SPLIT_SEED}, for validation"
            for number in range(1, _FOLDS + 1)
        },
    },
)

_LAYOUT = "'<human or mouse organ>/tissue images/<id>.png' and '<organ>/label masks modify/<id>.tif'"
_MEMBER = re.compile(
    r"(?:.*/)?(?P<organ>(?:human|mouse)[ _][^/]+)/(?P<kind>tissue|label)[ _](?:images|masks[ _]modify)/"
    r"(?P<id>[^/]+)\.(?:png|tiff?)",
    re.IGNORECASE,
)


def convert(
    source: Path | str, output_dir: Path | str, *, protocol: str | None = None, workers: int = 1
) -> ConversionSummary:
    """Convert the images of all organs with the label maps in ``label masks modify``.

    That folder is the one that the authors evaluate on; in ``label masks`` overlaps have ids of their own. The
    masks of ambiguous areas, where not even experts could tell the nuclei apart, are not converted: such areas
    are meant to be left out of the metrics, for which the dataset format has no mask, and erasing the nuclei
    in them would count their detection as an error. The images were cut from 31 slides, one per organ, so
    no protocol tests on unseen slides.

    Args:
        source: the archive from Kaggle or Zenodo, or the folder unpacked from it.
        output_dir: the dataset folder to write.
        protocol: ``"per_organ_70_15_15"`` (the default) or ``"five_fold_1"`` to ``"five_fold_5"``.
        workers: processes that decode and write.

    Raises:
        ConfigurationError: the protocol is unknown.
        DatasetError: the source is missing, damaged or of another layout, or ``output_dir`` is not empty.
    """
    with open_source(source, without=IMAGEJ_ARCHIVES) as opened:
        pairs = _find_pairs(opened)
        check_counts("nuinsseg", opened, {"images": len(pairs)})
        return write_dataset(
            output_dir,
            INFO,
            [SampleJob(_id(key), partial(decode_pair, pair), _organ(key)) for key, pair in pairs.items()],
            sources=[opened],
            protocols=_protocols(list(pairs)),
            protocol=protocol,
            conversion={"ambiguous_areas": "not used"},
            workers=workers,
        )


def _protocols(keys: Sequence[str]) -> dict[str, Protocol]:
    return {
        name: Protocol.from_splits(
            {split: map(_id, part) for split, part in splits.items()}, INFO.protocols[name]
        )
        for name, splits in {"per_organ_70_15_15": _per_organ(keys), **_five_folds(keys)}.items()
    }


def _per_organ(keys: Sequence[str]) -> dict[str, list[str]]:
    """Cut the sorted images of each organ into three runs."""
    splits: dict[str, list[str]] = {split: [] for split in _PER_ORGAN}
    for organ in sorted(set(map(_organ, keys))):
        rest = sorted(key for key in keys if _organ(key) == organ)
        for split, count in split_counts(len(rest), _PER_ORGAN).items():
            splits[split] += rest[:count]
            rest = rest[count:]
    return splits


def _five_folds(keys: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Return the splits of each fold; the order of the sorted keys is that of the sorted paths of the images."""
    ordered = sorted(keys)
    folds = {}
    for number, indices in enumerate(shuffled_folds(len(ordered), _FOLDS, _FOLD_SEED), start=1):
        test = [ordered[index] for index in indices]
        others = random_split(set(ordered) - set(test), _WITHOUT_TEST)
        folds[f"five_fold_{number}"] = {**others, "test": test}
    return folds


def _find_pairs(source: Source) -> dict[str, Pair]:
    """Return images and label maps by ``<organ>/<id>``."""
    files: dict[str, list[tuple[str, str]]] = {"tissue": [], "label": []}
    for name, found in source.match(_MEMBER):
        files[found["kind"].lower()].append((f"{found['organ']}/{found['id']}", name))
    return pair_by_name(source, files["tissue"], files["label"], title="NuInsSeg", layout=_LAYOUT)


def _organ(key: str) -> str:
    return key.partition("/")[0]


def _id(key: str) -> str:
    return key.partition("/")[2]
