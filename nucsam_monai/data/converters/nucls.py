"""Convert NuCLS tiles: folders of images, instance maps and class maps, with the splits as given."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import yaml  # type: ignore[import-untyped]

from nucsam_monai.data.converters.conversion import ConversionSummary, DatasetInfo, write_dataset
from nucsam_monai.data.converters.rasters import decode_labels, decode_rgb, majority_values
from nucsam_monai.data.converters.sources import Source, open_source
from nucsam_monai.data.protocols import Protocol
from nucsam_monai.data.writer import Sample, SampleJob
from nucsam_monai.utils.errors import DatasetError

INFO = DatasetInfo(
    name="nucls",
    title="NuCLS tiles of breast cancer with classes, as image, instance and class maps",
    images="as given",
    size_px="256x256",
    modality="H&E",
    magnification=None,
    mpp=None,
    licence="CC0-1.0",
    citation="Amgad et al., NuCLS: a scalable crowdsourcing approach and dataset for nucleus classification "
    "and segmentation in breast cancer, GigaScience 11, 2022",
    obtain="https://sites.google.com/view/nucls",
    protocols={"as_given": "the folders train and test as distributed"},
)

_LAYOUT = "{train,test}/{images,instances,classes}/<id>.png and label_map.yaml"
_KINDS = ("images", "instances", "classes")
_MEMBER = re.compile(
    r"(?:.*/)?(?P<part>train|test)/(?P<kind>images|instances|classes)/(?P<id>[^/]+)\.png", re.IGNORECASE
)
_LABEL_MAP = re.compile(r"(?:.*/)?label_map\.ya?ml", re.IGNORECASE)
_SPLITS = {"train": "training", "test": "test"}


@dataclass(frozen=True)
class _ClassTable:
    """The classes of the dataset: their names by class id, and the class id of each pixel value."""

    names: tuple[str, ...]
    ids: Mapping[int, int]


def convert(
    source: Path | str, output_dir: Path | str, *, protocol: str | None = None, workers: int = 1
) -> ConversionSummary:
    """Convert the tiles of ``train`` and ``test``; the class of a nucleus is that of most of its pixels.

    Class ids follow the order of the pixel values in ``label_map.yaml``, from 0.

    Args:
        source: the folder or a zip archive of it.
        output_dir: the dataset folder to write.
        protocol: ``"as_given"``.
        workers: processes that decode and write.

    Raises:
        ConfigurationError: the protocol is unknown.
        DatasetError: the source is missing, damaged or of another layout, or ``output_dir`` is not empty.
    """
    with open_source(source) as opened:
        tiles = _find_tiles(opened)
        table = _read_class_table(opened)
        splits: dict[str, list[str]] = {}
        for part, tile_id in tiles:
            splits.setdefault(_SPLITS[part], []).append(tile_id)
        return write_dataset(
            output_dir,
            INFO,
            [
                SampleJob(tile_id, partial(_decode, opened, files, table))
                for (_, tile_id), files in sorted(tiles.items())
            ],
            sources=[opened],
            protocols={"as_given": Protocol.from_splits(splits, INFO.protocols["as_given"])},
            protocol=protocol,
            class_names=table.names,
            conversion={"class_vote": "majority of pixels"},
            workers=workers,
        )


def _decode(source: Source, files: Mapping[str, str], table: _ClassTable) -> Sample:
    image = decode_rgb(source.read(files["images"]), source.where(files["images"]))
    instances = decode_labels(source.read(files["instances"]), source.where(files["instances"]))
    where = source.where(files["classes"])
    values = decode_labels(source.read(files["classes"]), where)
    majority = majority_values(instances, values, where)
    if unknown := sorted(set(np.unique(values[instances > 0]).tolist()) - {0, *table.ids}):
        raise DatasetError(f"{where}: pixel values {unknown[:5]} are not in label_map.yaml.")
    classes = {instance_id: table.ids[value] for instance_id, value in majority.items()}
    return Sample(image, instances, classes)


def _find_tiles(source: Source) -> dict[tuple[str, str], dict[str, str]]:
    """Return ``{(part, tile id): {kind: member name}}`` with all three kinds of every tile."""
    tiles: dict[tuple[str, str], dict[str, str]] = {}
    for name, found in source.match(_MEMBER):
        files = tiles.setdefault((found["part"].lower(), found["id"]), {})
        if files.setdefault(found["kind"].lower(), name) != name:
            raise DatasetError(f"{source.path}: {name} occurs twice, expected one folder of {_LAYOUT}.")
    if not tiles:
        raise source.refusal("NuCLS tiles", _LAYOUT)
    for (part, tile_id), files in sorted(tiles.items()):
        if missing := [kind for kind in _KINDS if kind not in files]:
            raise DatasetError(f"{source.path}: {part} tile {tile_id} has no {' and no '.join(missing)}.")
    return tiles


def _read_class_table(source: Source) -> _ClassTable:
    names = [name for name, _ in source.match(_LABEL_MAP)]
    if len(names) != 1:
        raise DatasetError(f"{source.path}: {len(names)} files label_map.yaml, expected one.")
    where = source.where(names[0])
    try:
        content = yaml.safe_load(source.read(names[0]))
    except yaml.YAMLError as error:
        raise DatasetError(f"{where}: not readable as YAML ({error}).") from error
    if not isinstance(content, dict) or not all(
        isinstance(value, int) and value > 0 and isinstance(title, str) for value, title in content.items()
    ):
        raise DatasetError(
            f"{where}: expected a map of pixel values from 1 to class names, found {content!r}."
        )
    values = sorted(content)
    return _ClassTable(
        names=tuple(content[value] for value in values),
        ids={value: class_id for class_id, value in enumerate(values)},
    )
