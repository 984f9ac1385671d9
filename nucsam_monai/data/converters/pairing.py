"""Pair images with their label maps by name, and tell the parts of a dataset apart."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nucsam_monai.data.converters.rasters import decode_labels, decode_rgb
from nucsam_monai.data.converters.sources import Source
from nucsam_monai.data.writer import Sample
from nucsam_monai.utils.errors import DatasetError

_WORDS = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Pair:
    """Name an image of a source and its label map."""

    source: Source
    image: str
    labels: str


def pair_by_name(
    source: Source,
    images: Iterable[tuple[str, str]],
    labels: Iterable[tuple[str, str]],
    *,
    title: str,
    layout: str,
    labels_are: str = "label map",
) -> dict[str, Pair]:
    """Pair files that have the same id, whatever its letter case.

    Args:
        source: archive or folder that holds the files.
        images: ``(id, member name)`` of every image.
        labels: ``(id, member name)`` of every label map.
        title: name of the dataset for messages.
        layout: the expected layout for messages.
        labels_are: how error messages name a label map.

    Returns:
        ``{id of the image: pair}`` in the order of the lower-case ids; it is not empty.

    Raises:
        DatasetError: there are no images, an id occurs twice, or a file has no partner.
    """
    image_of = _unique(source, images, "images")
    labels_of = _unique(source, labels, f"{labels_are}s")
    if not image_of:
        raise source.refusal(f"a {title} archive", layout)
    if unpaired := sorted(set(image_of) ^ set(labels_of)):
        sample_id, name = (image_of if unpaired[0] in image_of else labels_of)[unpaired[0]]
        missing = labels_are if unpaired[0] in image_of else "image"
        raise DatasetError(
            f"{source.path}: {len(unpaired)} images or {labels_are}s without the other; first {sample_id}: "
            f"{name} has no {missing}. Expected {layout}."
        )
    return {
        sample_id: Pair(source, name, labels_of[key][1])
        for key, (sample_id, name) in sorted(image_of.items())
    }


def decode_pair(pair: Pair) -> Sample:
    """Decode an image and its label map of instance ids.

    Raises:
        DatasetError: a file is damaged, or the two have different sizes.
    """
    source = pair.source
    image = decode_rgb(source.read(pair.image), source.where(pair.image))
    instances = decode_labels(source.read(pair.labels), source.where(pair.labels))
    check_size(instances.shape, image.shape[:2], source.where(pair.labels))
    return Sample(image, instances)


def check_size(labels: tuple[int, ...], image: tuple[int, ...], where: str) -> None:
    """Check that a label map has the size of its image.

    Raises:
        DatasetError: it has another.
    """
    if labels != image:
        raise DatasetError(f"{where}: label map is {labels}, its image is {image}.")


def part_of(source: Source, name: str, words: Mapping[str, str]) -> str | None:
    """Return the part of a dataset that a file belongs to, by the words in the folders above it.

    The innermost folder or archive that names exactly one part decides; the last to be asked is the source.

    Args:
        source: archive or folder that holds the file.
        name: name of the file in it.
        words: ``{word in lower case: part}``.

    Example:
        For ``{"train": "train", "test": "test"}``, ``data/Train_Set.zip/images/a.png`` is of ``"train"``.
    """
    folders = [source.path.name, *name.split("/")[:-1]]
    for folder in reversed(folders):
        parts = {words[word] for word in _WORDS.findall(folder.lower()) if word in words}
        if len(parts) == 1:
            return parts.pop()
    return None


def _unique(source: Source, files: Iterable[tuple[str, str]], what: str) -> dict[str, tuple[str, str]]:
    """Return ``{id in lower case: (id, member name)}``."""
    found: dict[str, tuple[str, str]] = {}
    for sample_id, name in files:
        key = sample_id.lower()
        if key in found:
            raise DatasetError(
                f"{source.path}: two {what} of {sample_id}: {found[key][1]} and {name}. Pass one copy."
            )
        found[key] = (sample_id, name)
    return found
