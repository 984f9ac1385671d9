"""Convert your own data: a folder of images and a folder of label maps, paired by name."""

import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from nucsam_monai.data.converters.conversion import ConversionSummary, DatasetInfo, write_dataset
from nucsam_monai.data.converters.polygons import geojson_outlines, paint_polygons
from nucsam_monai.data.converters.rasters import majority_values
from nucsam_monai.data.converters.sources import open_source
from nucsam_monai.data.label_files import read_classes
from nucsam_monai.data.protocols import Protocol
from nucsam_monai.data.splits import SPLIT_SEED, SPLITS, TRAIN_80_10_10, random_split
from nucsam_monai.data.writer import Sample, SampleJob, sample_id_of
from nucsam_monai.io import (
    LABEL_MAP_SUFFIXES,
    IntensityRange,
    check_intensity_range,
    find_images,
    read_class_map,
    read_image,
    read_label_map,
)
from nucsam_monai.utils.errors import ConfigurationError, DatasetError, ImageReadError
from nucsam_monai.utils.instances import connected_components
from nucsam_monai.utils.parallel import map_in_order

_logger = logging.getLogger(__name__)

_OUTLINES_AND_MAPS = (*LABEL_MAP_SUFFIXES, ".geojson")
_SUFFIXES_OF_TOOLS = ("_cp_masks", "_instances", "_masks", "_mask", "_labels", "_label")


def convert(
    images: Path | str,
    instances: Path | str,
    output_dir: Path | str,
    *,
    classes: Path | str | None = None,
    class_names: str | Sequence[str] | None = None,
    instances_suffix: str = "",
    classes_suffix: str = "",
    binary: Literal["components"] | None = None,
    intensity_range: Sequence[float] | None = None,
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

    An image's id is its file name without the suffix, with ``_`` for what some operating system has no file name
    for. Its EXIF orientation is applied.

    Args:
        images: folder of images, in any format that inference reads.
        instances: folder of label maps (PNG, TIFF, NPY or MAT; 0 = background, any other value a nucleus), or of
            QuPath's outlines (``.geojson``); it may be the folder of the images, if names distinguish them.
        output_dir: the dataset folder to write.
        classes: folder of the nuclei's classes: per-pixel maps in the same formats (0 = no class; a nucleus has
            the class of most of its pixels), or ``<name>.json`` with ``{instance id: class}``. The distinct
            values that occur, in ascending order, become the class ids from 0.
        class_names: their names in that order, separated by commas; ``class <value>`` by default.
        instances_suffix: suffix of label map names after the image name. Default: none, or one that other tools append,
            such as ``_cp_masks`` or ``_mask``.
        classes_suffix: suffix of the files in ``classes``, like ``instances_suffix``.
        binary: ``components`` for label maps that are binary masks: nuclei are their 8-connected components, so
            nuclei that touch are one. By default a label map's values are ids.
        intensity_range: the values that become black and white in images of more than 8 bits, for example ``0,4095``;
            percentiles of each image by default.
        group_pattern: regular expression whose first group, or whole match, in the image's name is the slide or
            patient; images of one group stay in one split.
        splits: JSON file ``{"training": [name, ...], "validation": [...], "test": [...]}`` with your own split;
            images that it does not name are unused. By default a random one of ``fractions``, whose validation
            images have nuclei as far as possible.
        fractions: fractions of the images in each part of the random split.
        seed: seed of the random split.
        name: name of the dataset and of its domain; the name of ``output_dir`` by default.
        modality: stain or microscopy, in words.
        magnification: objective magnification, ``40`` for 40x.
        mpp: micrometres per pixel.
        licence: licence of images and annotation.
        citation: publication to cite.
        workers: processes that read and write.

    Raises:
        ConfigurationError: an option does not fit the files.
        DatasetError: a file has no partner or another size, two files have one name, or ``output_dir`` is not empty.
        ImageReadError: a file is damaged or not an image.
    """
    _check_binary(binary, classes)
    contrast = check_intensity_range(intensity_range)
    image_files, label_files = _images_and_labels(Path(images), Path(instances), instances_suffix)
    kinds = (*LABEL_MAP_SUFFIXES, ".json")
    class_files = _partners(Path(classes), classes_suffix, kinds, image_files) if classes else {}
    class_values = _class_values(list(class_files.values()), workers)
    groups = _groups(image_files, group_pattern)
    protocol = _protocol(label_files, splits, fractions, seed, groups)
    info = DatasetInfo(
        name=name or Path(output_dir).name,
        title="your own images and label maps",
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
    decode = partial(_decode, class_values=class_values, binary=binary, intensity_range=contrast)
    jobs = [
        SampleJob(one, partial(decode, path, label_files[one], class_files.get(one)), group=groups.get(one))
        for one, path in image_files.items()
    ]
    conversion = {"instances": "8-connected components of binary masks"} if binary else {}
    with ExitStack() as stack:
        folders = dict.fromkeys(Path(folder) for folder in (images, instances, classes) if folder)
        write = partial(write_dataset, sources=[stack.enter_context(open_source(path)) for path in folders])
        summary = write(output_dir, info, jobs, protocols=protocol, conversion=conversion, workers=workers)
    if binary is None and summary.most_nuclei == 1:
        _warn_of_masks(instances)
    return summary


def _warn_of_masks(instances: Path | str) -> None:
    _logger.warning(
        "no label map of %s has more than one id, as in binary masks. Give every nucleus an id of its own, or "
        "convert again with --binary components.",
        instances,
    )


def _images_and_labels(
    images: Path, instances: Path, instances_suffix: str
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the images and their label maps by id; they may lie in one folder."""
    found = find_images(images)
    suffix = instances_suffix or _suffix_of_tools(found, instances)
    if suffix and instances.resolve() == images.resolve():
        found = [path for path in found if not _stem(path).endswith(suffix)]
    image_files = _files_by_id(images, found)
    return image_files, _partners(instances, suffix, _OUTLINES_AND_MAPS, image_files)


def _check_binary(binary: str | None, classes: Path | str | None) -> None:
    if binary not in (None, "components"):
        raise ConfigurationError(f"binary '{binary}': expected 'components', or nothing for maps of ids.")
    if binary and classes and any(path.suffix.lower() == ".json" for path in Path(classes).glob("*")):
        raise ConfigurationError(
            f"binary '{binary}': {classes} has classes by instance id, but binary masks have no ids. Pass per-pixel "
            "maps of the classes."
        )


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name.removesuffix(Path(name).suffix)


def _suffix_of_tools(images: Sequence[Path], folder: Path) -> str:
    """Return what follows the images' names in those of the label maps, as far as it is known.

    Raises:
        ConfigurationError: images and label maps are in one folder and cannot be distinguished.
    """
    labels = {_stem(path) for path in folder.glob("*") if path.suffix.lower() in _OUTLINES_AND_MAPS}
    stems = {_stem(path) for path in images}
    shared = folder.resolve() == images[0].parent.resolve()
    if stems & labels and not shared:
        return ""
    for suffix in _SUFFIXES_OF_TOOLS:
        if any(f"{stem}{suffix}" in labels for stem in stems):
            _logger.info("%s: label maps are the files whose names end with %s", folder, suffix)
            return suffix
    if shared:
        raise ConfigurationError(
            f"{folder}: holds images and label maps. Pass what follows an image's name in the label map's as "
            "--instances_suffix."
        )
    return ""


def _files_by_id(folder: Path, paths: Iterable[Path], suffix: str = "") -> dict[str, Path]:
    """Return ``{sample id: file}`` of the files whose names without suffixes end in ``suffix``.

    Raises:
        DatasetError: two files have one id, whatever its letter case.
    """
    files: dict[str, Path] = {}
    taken: dict[str, Path] = {}
    for path in paths:
        stem = unicodedata.normalize("NFC", _stem(path))
        if not stem.endswith(suffix):
            continue
        sample_id = sample_id_of(stem.removesuffix(suffix))
        other = taken.setdefault(sample_id.lower(), path)
        if other is not path:
            raise DatasetError(
                f"{folder}: {other.name} and {path.name} are both of '{sample_id}' (letter case and suffix do not "
                "count). Rename or remove one."
            )
        files[sample_id] = path
    return files


def _partners(
    folder: Path, suffix: str, file_suffixes: Sequence[str], image_files: Mapping[str, Path]
) -> dict[str, Path]:
    """Return the file of every image in ``folder``."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder.")
    found = _files_by_id(
        folder,
        (
            path
            for path in sorted(folder.iterdir())
            if not path.name.startswith(".") and path.suffix.lower() in file_suffixes
        ),
        suffix,
    )
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
    label_files: Mapping[str, Path],
    splits: Path | str | None,
    fractions: Mapping[str, float],
    seed: int,
    groups: Mapping[str, str],
) -> dict[str, Protocol]:
    if splits is None:
        drawn = random_split(label_files, fractions, seed, groups)
        if fractions.get("validation"):
            drawn = _validate_on_nuclei(drawn, label_files, seed, groups)
        return {"random": Protocol.from_splits(drawn, f"random, seed {seed}, fractions {dict(fractions)}")}
    try:
        content = json.loads(Path(splits).read_text(encoding="utf-8"))
        named = {split: [sample_id_of(str(name)) for name in content.get(split, [])] for split in SPLITS}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"splits {splits}: not a JSON object of lists of names for {', '.join(SPLITS)} ({error})."
        ) from error
    return {"given": Protocol.from_splits(named, f"as in {Path(splits).name}")}


def _has_nuclei(labels: Path) -> bool:
    try:
        is_outlines = labels.suffix.lower() == ".geojson"
        return bool(geojson_outlines(labels)) if is_outlines else bool(read_label_map(labels).any())
    except (DatasetError, ImageReadError):
        return True  # the conversion names it, with all others that are wrong


def _validate_on_nuclei(
    drawn: Mapping[str, Sequence[str]], label_files: Mapping[str, Path], seed: int, groups: Mapping[str, str]
) -> dict[str, list[str]]:
    """Swap validation images without nuclei, which cannot rank epochs, for training images with nuclei.

    Groups stay whole. A split that is too small for validation images is given one group, or one image.
    """

    def has_nuclei(group: Sequence[str]) -> bool:
        return any(_has_nuclei(label_files[name]) for name in group)

    splits = {split: list(ids) for split, ids in drawn.items()}
    training, validation = (_grouped(splits[split], groups) for split in ("training", "validation"))
    wanted = [group for group in validation if not has_nuclei(group)] if validation else [[]]
    for number in np.random.default_rng(seed).permutation(len(training)):
        if not wanted or len(training) < 2:
            break
        if has_nuclei(training[number]):
            without = wanted.pop()
            for split, leaves, comes in (
                ("training", training[number], without),
                ("validation", without, training[number]),
            ):
                splits[split] = sorted({*splits[split], *comes} - set(leaves))
    return splits


def _grouped(ids: Iterable[str], groups: Mapping[str, str]) -> list[list[str]]:
    members: dict[tuple[bool, str], list[str]] = {}
    for name in ids:
        members.setdefault((name in groups, groups.get(name, name)), []).append(name)
    return list(members.values())


def _class_values(class_files: Sequence[Path], workers: int) -> list[int]:
    values: set[int] = set()
    for _, found in map_in_order(_values_of_file, class_files, workers=workers):
        values |= found
    return sorted(values)


def _values_of_file(path: Path) -> set[int]:
    if path.suffix.lower() == ".json":
        return set(read_classes(path).values())
    return set(np.unique(read_class_map(path)).tolist()) - {0}


def _class_names(given: str | Sequence[str] | None, values: Sequence[int]) -> tuple[str, ...]:
    names = tuple(given.split(",")) if isinstance(given, str) else tuple(given or ())
    if not values:
        return ("nucleus",)
    if names and len(names) != len(values):
        raise ConfigurationError(
            f"class_names: {len(names)} names for {len(values)} classes, whose values are {list(values)}."
        )
    return tuple(part.strip() for part in names) or tuple(f"class {value}" for value in values)


def _check_background(instances: np.ndarray, labels: Path) -> None:
    """Refuse a map of several nuclei whose background has an id too."""
    ids, counts = np.unique(instances, return_counts=True)
    if len(ids) > 2 and ids[0] > 0 and 2 * counts.max() > instances.size:
        raise DatasetError(
            f"{labels}: no pixel is 0, and {ids[counts.argmax()]} covers {100 * counts.max() / instances.size:.0f} % "
            "of the image, as background does. Make the background 0."
        )


def _decode(
    image: Path,
    labels: Path,
    classes: Path | None,
    class_values: Sequence[int],
    binary: Literal["components"] | None,
    intensity_range: IntensityRange | None,
) -> Sample:
    pixels = read_image(image, intensity_range=intensity_range)
    if labels.suffix.lower() == ".geojson":
        instances = paint_polygons(geojson_outlines(labels), (pixels.shape[0], pixels.shape[1]))
    else:
        instances = read_label_map(labels)
    if instances.shape != pixels.shape[:2]:
        raise DatasetError(f"{labels}: label map is {instances.shape}, its image is {pixels.shape[:2]}.")
    _check_background(instances, labels)
    if binary:
        if np.unique(instances).size > 2:
            raise DatasetError(
                f"{labels}: {np.unique(instances).size} values, expected a binary mask of two. Leave out --binary for "
                "maps of ids."
            )
        instances = connected_components(instances > 0)
    if classes is None:
        return Sample(pixels, instances)
    if classes.suffix.lower() == ".json":
        values = read_classes(classes)
    else:
        values = majority_values(instances, read_class_map(classes), str(classes))
    return Sample(pixels, instances, {key: class_values.index(value) for key, value in values.items()})
