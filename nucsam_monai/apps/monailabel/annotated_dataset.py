"""From the annotations of a studies folder to a dataset folder that the bundles train on."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.apps.monailabel.image_source import ImageOpener, SlideImage
from nucsam_monai.apps.monailabel.label_files import (
    READABLE_LABEL_SUFFIXES,
    nuclei_of_label,
    read_label,
)
from nucsam_monai.apps.monailabel.polygon_labels import POLYGON_SUFFIXES, NamedPolygon, read_polygons
from nucsam_monai.data import DatasetMetadata, DatasetWriter
from nucsam_monai.data.converters.polygons import polygon_mask
from nucsam_monai.utils.errors import DatasetError
from nucsam_monai.utils.image_source import ImageSource, Region

logger = logging.getLogger(__name__)

ANNOTATION_SUFFIXES = (*READABLE_LABEL_SUFFIXES, *POLYGON_SUFFIXES)
"""Suffixes of annotations that can be trained on."""

_PADDING_PX = 32
_LARGEST_SIDE_PX = 8192


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its annotation."""

    id: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Annotation:
    """The annotated part of an image: ``(H, W, 3)`` uint8, ``(H, W)`` int32 and ``{instance id: class id}``."""

    pixels: NDArray[np.uint8]
    instances: NDArray[np.int32]
    classes: Mapping[int, int]


def write_annotated_dataset(
    folder: Path,
    images: Sequence[AnnotatedImage],
    opener: ImageOpener,
    *,
    domain: str,
    class_names: Sequence[str] = ("nucleus",),
    validation_share: float = 0.2,
) -> dict[str, int]:
    """Write a dataset folder; it appears whole or not at all.

    The split follows from the images' names alone, so that an image stays where it is as others join.

    Args:
        folder: the dataset folder, new or empty.
        images: at least two.
        opener: reads the images.
        domain: of the images.
        class_names: names of the classes; with more than one, outlines must be named by them.
        validation_share: share of the images, at least one, that selects the weights.

    Returns:
        Number of images by split.

    Raises:
        DatasetError: too few images, or an annotation that cannot be used, which the message names.
    """
    if len(images) < 2:
        raise DatasetError(
            f"{len(images)} annotated images; expected at least 2, one to train on and one to choose the best "
            "weights by. Save annotations with the tag 'final'."
        )
    ordered = sorted(images, key=lambda one: hashlib.sha256(one.id.encode()).digest())
    validation = {one.id for one in ordered[: max(1, round(validation_share * len(images)))]}
    validation = validation if len(validation) < len(images) else {ordered[0].id}
    metadata = DatasetMetadata(
        name=domain,
        domain=domain,
        modality="unknown",
        magnification=None,
        mpp=None,
        licence="unknown",
        citation="annotated with MONAI Label",
        class_names=tuple(class_names),
    )
    with DatasetWriter(folder, metadata) as writer:
        for number, one in enumerate(sorted(images, key=lambda one: one.id)):
            annotation = read_annotation(one, opener, class_names)
            writer.add(
                "validation" if one.id in validation else "training",
                f"{number:04d}",
                annotation.pixels,
                annotation.instances,
                classes=annotation.classes if len(class_names) > 1 else None,
                group=one.id,
            )
    return {"training": len(images) - len(validation), "validation": len(validation)}


def read_annotation(one: AnnotatedImage, opener: ImageOpener, class_names: Sequence[str]) -> Annotation:
    """Read an image with its annotation; of a slide only the box around all outlines.

    Raises:
        DatasetError: image and annotation do not belong together, or an outline has no name of a class.
        ImageReadError: one of the files is damaged.
    """
    source = opener.open(one.image)
    try:
        if one.label.name.lower().endswith(POLYGON_SUFFIXES):
            return _of_polygons(one, source, read_polygons(one.label), class_names)
        if len(class_names) > 1:
            raise DatasetError(
                f"{one.id}: a label image tells no classes, but the model has {', '.join(class_names)}. Save "
                "outlines that are named by class."
            )
        instances = nuclei_of_label(read_label(one.label, opener.max_pixels))
        if instances.shape != (source.height, source.width):
            raise DatasetError(
                f"{one.id}: the label image has {instances.shape[1]} x {instances.shape[0]} px, the image "
                f"{source.width} x {source.height} px."
            )
        pixels = source.read(Region(0, 0, source.width, source.height))
        return Annotation(pixels, instances, {})
    finally:
        source.close()


def _of_polygons(
    one: AnnotatedImage, source: ImageSource, polygons: Sequence[NamedPolygon], class_names: Sequence[str]
) -> Annotation:
    region = Region(0, 0, source.width, source.height)
    if isinstance(source, SlideImage):
        region = _region_around(one.id, polygons, region)
    instances = np.zeros((region.height, region.width), dtype=np.int32)
    classes: dict[int, int] = {}
    for nucleus_id, polygon in enumerate(polygons, start=1):
        mask, row, column = _filled(polygon, region)
        place = instances[row : row + mask.shape[0], column : column + mask.shape[1]]
        place[mask & (place == 0)] = nucleus_id
        classes[nucleus_id] = _class_of(one.id, polygon.name, class_names)
    drawn = np.unique(instances).tolist()
    return Annotation(source.read(region), instances, {found: classes[found] for found in drawn if found})


def _filled(polygon: NamedPolygon, region: Region) -> tuple[NDArray[np.bool_], int, int]:
    shape, corner = (region.height, region.width), (region.x, region.y)
    corners = polygon.corners - corner
    mask, row, column = polygon_mask(corners[:, 0], corners[:, 1], shape)
    for hole in polygon.holes:
        shifted = hole - corner
        empty, top, left = polygon_mask(shifted[:, 0], shifted[:, 1], shape)
        whole = np.zeros(shape, dtype=np.bool_)
        whole[top : top + empty.shape[0], left : left + empty.shape[1]] = empty
        mask = mask & ~whole[row : row + mask.shape[0], column : column + mask.shape[1]]
    return mask, row, column


def _class_of(image_id: str, name: str, class_names: Sequence[str]) -> int:
    if len(class_names) == 1:
        return 0
    by_name = {known.lower(): number for number, known in enumerate(class_names)}
    if name.lower() not in by_name:
        raise DatasetError(
            f"{image_id}: an outline is named '{name}', expected one of {', '.join(class_names)}. Give it a class."
        )
    return by_name[name.lower()]


def _region_around(image_id: str, polygons: Sequence[NamedPolygon], whole: Region) -> Region:
    if not polygons:
        raise DatasetError(
            f"{image_id}: no outline on the slide, so that nobody knows which part is annotated."
        )
    corners = np.concatenate([polygon.corners for polygon in polygons])
    low = np.maximum(np.floor(corners.min(axis=0)).astype(int) - _PADDING_PX, 0)
    high = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + _PADDING_PX, [whole.width, whole.height])
    width, height = (high - low).tolist()
    if not 0 < width <= _LARGEST_SIDE_PX or not 0 < height <= _LARGEST_SIDE_PX:
        raise DatasetError(
            f"{image_id}: the outlines span {width} x {height} px, expected at most {_LARGEST_SIDE_PX} px each way, "
            "because all nuclei between them count as annotated. Save patches instead."
        )
    return Region(int(low[0]), int(low[1]), width, height)
