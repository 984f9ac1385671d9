"""NuCLS tiles as folders of images, instance maps and class maps, with the splits as given."""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml  # type: ignore[import-untyped]

from nucsam_monai.data.converters.progress import with_progress
from nucsam_monai.data.converters.rasters import decode_labels, decode_rgb
from nucsam_monai.data.converters.sources import Source, open_source, source_digests
from nucsam_monai.data.converters.summary import ConversionSummary
from nucsam_monai.data.dataset import DatasetMetadata
from nucsam_monai.data.writer import DatasetWriter
from nucsam_monai.utils.errors import DatasetError

LICENCE = "CC0-1.0"
CITATION = (
    "Amgad et al., NuCLS: a scalable crowdsourcing approach and dataset for nucleus classification and "
    "segmentation in breast cancer, GigaScience 11, 2022"
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


def convert(source: Path | str, output_dir: Path | str) -> ConversionSummary:
    """Convert the tiles of ``train`` and ``test``; the class of a nucleus is that of most of its pixels.

    Class ids follow the order of the pixel values in ``label_map.yaml``, from 0.

    Args:
        source: the folder or a zip archive of it.
        output_dir: the dataset folder to write.

    Raises:
        DatasetError: the source is missing, damaged or of another layout, or ``output_dir`` is not empty.
    """
    with ExitStack() as stack:
        opened = stack.enter_context(open_source(source))
        tiles = _find_tiles(opened)
        table = _read_class_table(opened)
        writer = stack.enter_context(
            DatasetWriter(output_dir, _metadata(source_digests(opened), table.names))
        )
        for (part, tile_id), files in with_progress(sorted(tiles.items()), "nucls", "image"):
            image = decode_rgb(opened.read(files["images"]), opened.where(files["images"]))
            instances = decode_labels(opened.read(files["instances"]), opened.where(files["instances"]))
            values = decode_labels(opened.read(files["classes"]), opened.where(files["classes"]))
            classes = _majority_classes(instances, values, table, opened.where(files["classes"]))
            writer.add(_SPLITS[part], tile_id, image, instances, classes=classes)
    return ConversionSummary(Path(output_dir), "nucls", writer.counts)


def _find_tiles(source: Source) -> dict[tuple[str, str], dict[str, str]]:
    """Return ``{(part, tile id): {kind: member name}}`` with all three kinds of every tile."""
    tiles: dict[tuple[str, str], dict[str, str]] = {}
    for name, found in source.match(_MEMBER):
        files = tiles.setdefault((found["part"].lower(), found["id"]), {})
        if files.setdefault(found["kind"].lower(), name) != name:
            raise DatasetError(f"{source.path}: {name} occurs twice, expected one folder of {_LAYOUT}.")
    if not tiles:
        raise DatasetError(
            f"{source.path}: not NuCLS tiles, expected {_LAYOUT}; first file: {source.names[0]}."
        )
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


def _majority_classes(
    instances: np.ndarray, values: np.ndarray, table: _ClassTable, where: str
) -> dict[int, int]:
    """Return ``{instance id: class id}``; equal votes go to the lower pixel value, 0 does not vote."""
    if values.shape != instances.shape:
        raise DatasetError(f"{where}: class map is {values.shape}, instance map is {instances.shape}.")
    voting = (instances > 0) & (values > 0)
    pairs, votes = np.unique(np.stack([instances[voting], values[voting]]), axis=1, return_counts=True)
    if unknown := sorted(set(pairs[1].tolist()) - set(table.ids)):
        raise DatasetError(f"{where}: pixel values {unknown[:5]} are not in label_map.yaml.")
    best: dict[int, tuple[int, int]] = {}
    for instance_id, value, count in zip(pairs[0].tolist(), pairs[1].tolist(), votes.tolist(), strict=True):
        if count > best.get(instance_id, (0, 0))[0]:
            best[instance_id] = (count, table.ids[value])
    without = sorted(set(np.unique(instances[instances > 0]).tolist()) - set(best))
    if without:
        raise DatasetError(f"{where}: {len(without)} instances have no class, first {without[0]}.")
    return {instance_id: class_id for instance_id, (_, class_id) in best.items()}


def _metadata(digests: dict[str, str], class_names: tuple[str, ...]) -> DatasetMetadata:
    return DatasetMetadata(
        name="nucls",
        domain="nucls",
        modality="H&E",
        magnification=None,
        mpp=None,
        licence=LICENCE,
        citation=CITATION,
        class_names=class_names,
        source=digests,
        conversion={"class_vote": "majority of pixels"},
    )
