"""A dataset of one's own: a folder of images and a folder of label maps, paired by name."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from nucsam_monai.data.converters.conversion import ConversionSummary, DatasetInfo, write_dataset
from nucsam_monai.data.converters.rasters import majority_values
from nucsam_monai.data.converters.sources import open_source
from nucsam_monai.data.label_files import read_classes
from nucsam_monai.data.protocols import Protocol
from nucsam_monai.data.splits import SPLIT_SEED, SPLITS, TRAIN_80_10_10, random_split
from nucsam_monai.data.writer import Sample, SampleJob
from nucsam_monai.io import LABEL_MAP_SUFFIXES, find_images, read_image, read_label_map
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from nucsam_monai.utils.parallel import map_in_order

_NOT_IN_AN_ID = re.compile(r"[^A-Za-z0-9 ._()+-]+")


def convert(
    images: Path | str,
    instances: Path | str,
    output_dir: Path | str,
    *,
    classes: Path | str | None = None,
    class_names: str | Sequence[str] | None = None,
    instances_suffix: str = "",
    classes_suffix: str = "",
    group_pattern: str | None = None,
    splits: Path | str | None = None,
    fractions: Mapping[str, float] = TRAIN_80_10_10,
    seed: int = SPLIT_SEED,
    name: str | None = None,
    modality: str = "unknown",
    magnification: float | None = None,
    mpp: float | None = None,
    licence: str = "not stated",
    citation: str = "not stated",
    workers: int = 1,
) -> ConversionSummary:
    """Make a dataset folder of images and label maps of equal names.

    Args:
        images: folder of images, in any format that inference reads.
        instances: folder of label maps (PNG, TIFF, NPY or MAT; 0 = background, any other value a nucleus).
        output_dir: the dataset folder to write.
        classes: folder of the nuclei's classes: per-pixel maps in the same formats (0 = no class; a nucleus has
            the class of most of its pixels), or ``<name>.json`` with ``{instance id: class}``. The distinct
            values that occur, in rising order, become the class ids from 0.
        class_names: their names in that order, separated by commas; ``class <value>`` by default.
        instances_suffix: what follows the image's name in the label map's, for example ``_mask``.
        classes_suffix: likewise for ``classes``.
        group_pattern: regular expression whose first group, or whole match, in the image's name is the slide or
            patient; images of one group stay in one split.
        splits: JSON file ``{"training": [name, ...], "validation": [...], "test": [...]}`` with a split of one's
            own; images that it does not name are unused. By default a random one of ``fractions``.
        fractions: of the random split.
        seed: of the random split.
        name: name of the dataset and of its domain; the name of ``output_dir`` by default.
        modality: stain or microscopy, in words.
        magnification: objective magnification, ``40`` for 40x.
        mpp: micrometres per pixel.
        licence: licence of images and annotation.
        citation: what to cite.
        workers: processes that read and write.

    Raises:
        ConfigurationError: an option does not fit the files.
        DatasetError: a file has no partner or another size, or ``output_dir`` is not empty.
        ImageReadError: a file is damaged or no image.
    """
    image_files = {_plain_stem(path): path for path in find_images(images)}
    label_files = _partners(Path(instances), instances_suffix, LABEL_MAP_SUFFIXES, image_files)
    class_files = (
        _partners(Path(classes), classes_suffix, (*LABEL_MAP_SUFFIXES, ".json"), image_files)
        if classes
        else {}
    )
    class_values = _class_values(list(class_files.values()), workers)
    groups = _groups(image_files, group_pattern)
    protocol = _protocol(list(image_files), splits, fractions, seed, groups)
    info = DatasetInfo(
        name=name or Path(output_dir).name,
        title="images and label maps of one's own",
        images=str(len(image_files)),
        size_px="as they are",
        modality=modality,
        magnification=magnification,
        mpp=mpp,
        licence=licence,
        citation=citation,
        obtain="",
        protocols={next(iter(protocol)): ""},
        class_names=_class_names(class_names, class_values),
    )
    jobs = [
        SampleJob(
            sample_id,
            partial(_decode, path, label_files[sample_id], class_files.get(sample_id), class_values),
            group=groups.get(sample_id),
        )
        for sample_id, path in image_files.items()
    ]
    with ExitStack() as stack:
        folders = [images, instances, *([classes] if classes else [])]
        sources = [stack.enter_context(open_source(folder)) for folder in dict.fromkeys(map(Path, folders))]
        return write_dataset(output_dir, info, jobs, sources=sources, protocols=protocol, workers=workers)


def _plain_stem(path: Path) -> str:
    """Return a sample id: the file's name without suffixes, with ``_`` for what no file name may have."""
    stem = path.name.removesuffix(".gz")
    return _NOT_IN_AN_ID.sub("_", stem.removesuffix(Path(stem).suffix))


def _partners(
    folder: Path, suffix: str, file_suffixes: Sequence[str], image_files: Mapping[str, Path]
) -> dict[str, Path]:
    """Return the file of every image in ``folder``."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem = _plain_stem(path)
        if path.name.startswith(".") or path.suffix.lower() not in file_suffixes or not stem.endswith(suffix):
            continue
        sample_id = stem.removesuffix(suffix)
        if sample_id in found:
            raise DatasetError(
                f"{folder}: {found[sample_id].name} and {path.name} are both of '{sample_id}'."
            )
        found[sample_id] = path
    without = sorted(set(image_files) - set(found))
    if without:
        raise DatasetError(
            f"{folder}: nothing for {len(without)} of {len(image_files)} images, first "
            f"{image_files[without[0]].name}; expected {without[0]}{suffix} with one of "
            f"{', '.join(file_suffixes)}."
        )
    if foreign := sorted(set(found) - set(image_files)):
        raise DatasetError(
            f"{folder}: {len(foreign)} files without an image, first {found[foreign[0]].name}."
        )
    return found


def _groups(image_files: Mapping[str, Path], pattern: str | None) -> dict[str, str]:
    if pattern is None:
        return {}
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"group_pattern '{pattern}': not a regular expression ({error}).") from error
    groups = {}
    for sample_id, path in image_files.items():
        found = expression.search(path.name)
        if not found:
            raise ConfigurationError(f"group_pattern '{pattern}': does not occur in {path.name}.")
        groups[sample_id] = found[1] if expression.groups else found[0]
    return groups


def _protocol(
    ids: Sequence[str],
    splits: Path | str | None,
    fractions: Mapping[str, float],
    seed: int,
    groups: Mapping[str, str],
) -> dict[str, Protocol]:
    if splits is None:
        drawn = random_split(ids, fractions, seed, groups)
        return {"random": Protocol.from_splits(drawn, f"random, seed {seed}, fractions {dict(fractions)}")}
    try:
        content = json.loads(Path(splits).read_text(encoding="utf-8"))
        named = {
            split: [_plain_stem(Path(f"{stem}.x")) for stem in content.get(split, [])] for split in SPLITS
        }
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"splits {splits}: not a JSON object of lists of names for {', '.join(SPLITS)} ({error})."
        ) from error
    return {"given": Protocol.from_splits(named, f"as in {Path(splits).name}")}


def _class_values(class_files: Sequence[Path], workers: int) -> list[int]:
    values: set[int] = set()
    for _, found in map_in_order(_values_of_file, class_files, workers=workers):
        values |= found
    return sorted(values)


def _values_of_file(path: Path) -> set[int]:
    if path.suffix.lower() == ".json":
        return set(read_classes(path).values())
    return set(np.unique(read_label_map(path)).tolist()) - {0}


def _class_names(given: str | Sequence[str] | None, values: Sequence[int]) -> tuple[str, ...]:
    names = tuple(given.split(",")) if isinstance(given, str) else tuple(given or ())
    if not values:
        return ("nucleus",)
    if names and len(names) != len(values):
        raise ConfigurationError(
            f"class_names: {len(names)} names for {len(values)} classes, whose values are {list(values)}."
        )
    return tuple(part.strip() for part in names) or tuple(f"class {value}" for value in values)


def _decode(image: Path, labels: Path, classes: Path | None, class_values: Sequence[int]) -> Sample:
    pixels, instances = read_image(image), read_label_map(labels)
    if instances.shape != pixels.shape[:2]:
        raise DatasetError(f"{labels}: label map is {instances.shape}, its image is {pixels.shape[:2]}.")
    if classes is None:
        return Sample(pixels, instances)
    if classes.suffix.lower() == ".json":
        values = read_classes(classes)
    else:
        values = majority_values(instances, read_label_map(classes), str(classes))
    return Sample(pixels, instances, {key: class_values.index(value) for key, value in values.items()})
