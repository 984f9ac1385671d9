"""Images with one label map each, in two folders or many, paired by name."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nucsam_monai.data.converters.rasters import decode_labels, decode_rgb
from nucsam_monai.data.converters.sources import Source
from nucsam_monai.data.samples import Sample
from nucsam_monai.utils.errors import DatasetError

IMAGEJ_ARCHIVES = re.compile(r"(?:.*/)?imag[^/]*/.*\.zip", re.IGNORECASE)
"""Outlines of ImageJ, in an archive per image in folders such as ``Imagj_zips``: more than can be open at once."""


class Found(NamedTuple):
    """A file of a source: which of the two it is, what it is paired by, and the name of the member."""

    kind: Literal["image", "label map"]
    key: str
    name: str


@dataclass(frozen=True)
class LabelledImage:
    """Where an image and its label map lie."""

    source: Source
    image: str
    labels: str

    def decode(self) -> Sample:
        """Return the image with its instances.

        Raises:
            DatasetError: a file is damaged or of another kind.
        """
        image = decode_rgb(self.source.read(self.image), self.source.where(self.image))
        return Sample(image, decode_labels(self.source.read(self.labels), self.source.where(self.labels)))


def pair_by_key(source: Source, files: Iterable[Found], title: str, layout: str) -> dict[str, LabelledImage]:
    """Pair images and label maps whose keys are the same whatever their letter case.

    Args:
        source: the archive or folder.
        files: images and label maps in any order.
        title: name of the dataset for messages.
        layout: what was expected, for messages.

    Returns:
        ``{key of the image: files}``, sorted by the key.

    Raises:
        DatasetError: there is no image, one of a pair is missing, or something occurs twice.
    """
    images: dict[str, Found] = {}
    labels: dict[str, Found] = {}
    for file in files:
        same_kind = images if file.kind == "image" else labels
        first = same_kind.setdefault(file.key.lower(), file)
        if first is not file:
            raise DatasetError(
                f"{source.path}: two {file.kind}s of {file.key}, {first.name} and {file.name}; expected {layout}."
            )
    if not images:
        raise DatasetError(f"{source.path}: not {title}, expected {layout}; first file: {source.names[0]}.")
    if unpaired := sorted(set(images) ^ set(labels)):
        have = "an image" if unpaired[0] in images else "a label map"
        raise DatasetError(
            f"{source.path}: {len(unpaired)} images or label maps without the other; first {unpaired[0]}, "
            f"which has {have} only. Expected {layout}."
        )
    pairs = {image.key: LabelledImage(source, image.name, labels[key].name) for key, image in images.items()}
    return dict(sorted(pairs.items()))
