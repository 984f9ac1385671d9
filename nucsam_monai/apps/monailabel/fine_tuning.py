"""Train a served bundle: from the annotations of a studies folder to a dataset and new weights.

The bundle's own ``train.json`` trains.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigWorkflow
from numpy.typing import NDArray

from nucsam_monai.apps.monailabel.annotations import POLYGON_SUFFIXES, NamedPolygon, read_polygons
from nucsam_monai.apps.monailabel.images import (
    READABLE_LABEL_SUFFIXES,
    ImageOpener,
    SlideImage,
    nuclei_of_label,
    read_label,
)
from nucsam_monai.apps.monailabel.model import BundleRuns, write_run_facts
from nucsam_monai.apps.monailabel.options import Choice, Number, Option, Switch
from nucsam_monai.data import DatasetMetadata, DatasetWriter
from nucsam_monai.data.converters.polygons import polygon_mask
from nucsam_monai.segmenter import Scalar, Segmenter
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from nucsam_monai.utils.files import sha256_of_file
from nucsam_monai.utils.image_source import ImageSource, Region

logger = logging.getLogger(__name__)

ANNOTATION_SUFFIXES = (*READABLE_LABEL_SUFFIXES, *POLYGON_SUFFIXES)
"""Suffixes of annotations that can be trained on."""

_PADDING_PX = 32
_LARGEST_SIDE_PX = 8192
FROM_SCRATCH = "scratch"


@dataclass(frozen=True)
class AnnotatedImage:
    """Name an image and the file of its annotation."""

    id: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Annotation:
    """Hold the annotated part of an image: ``(H, W, 3)`` uint8, ``(H, W)`` int32 and ``{instance id: class id}``."""

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
        domain: domain of the images.
        class_names: names of the classes; with more than one, outlines must be named by them.
        validation_share: fraction of the images, at least one, that selects the weights.

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
                f"{one.id}: a label image has no classes, but the model has {', '.join(class_names)}. Save "
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
        raise DatasetError(f"{image_id}: no outline on the slide, so the annotated part is unknown.")
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


@dataclass(frozen=True)
class FineTuning:
    """Hold what a request for training asks for.

    Attributes:
        epochs: passes of the training, as the bundle counts them.
        learning_rate: learning rate; None keeps the bundle's value.
        validation_share: fraction of the images that selects the weights.
        start: name of the weights to start from, or :data:`FROM_SCRATCH`.
        domain: domain of the images, for methods with domains.
        serve: whether the server answers with the new weights from then on.
    """

    epochs: int
    learning_rate: float | None
    validation_share: float
    start: str
    domain: str | None
    serve: bool


def training_options(runs: BundleRuns, domains: Sequence[str], devices: Sequence[str]) -> tuple[Option, ...]:
    """Return what a request for training may set; ``lr`` 0 leaves the bundle's learning rate."""
    options: list[Option] = [
        Choice("device", tuple(devices)),
        Number("max_epochs", 10, 1, 10000, whole=True),
        Number("lr", 0, 0, 1),
        Number("val_split", 0.2, 0.01, 0.9),
        Choice("start", (*runs.choices(), FROM_SCRATCH)),
        Switch("serve", default=False),
    ]
    return (*options, Choice("domain", tuple(domains))) if domains else tuple(options)


def fine_tune(
    bundle: Segmenter,
    runs: BundleRuns,
    images: Sequence[AnnotatedImage],
    opener: ImageOpener,
    wanted: FineTuning,
    *,
    tracking_uri: str | None = None,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Train and keep the best weights in a new run.

    Args:
        bundle: bundle with the weights to start from, which determine classes and domains.
        runs: the bundle's runs.
        images: the annotations.
        opener: reads the images.
        wanted: the request.
        tracking_uri: MLflow store; None takes the bundle's default.
        now: names the run.

    Returns:
        What ``run.json`` holds: the name of the run, its images and the weights it started from.

    Raises:
        DatasetError: the annotations cannot be used.
        ConfigurationError: the bundle cannot be trained.
    """
    name = runs.new_name(now or datetime.now())
    partial = runs.folder / f".{name}.partial"
    partial.mkdir(parents=True)
    try:
        facts = {"run": name, **_train_in(partial, bundle, images, opener, wanted, tracking_uri)}
        if not runs.weights_in(partial).exists() or not facts["weights_sha256"]:
            raise ConfigurationError(
                f"{bundle.folder.name}: the training kept no weights. Train more epochs."
            )
        write_run_facts(partial, facts)
        partial.rename(runs.folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if wanted.serve:
        runs.serve(name)
    return facts


def _train_in(
    run_dir: Path,
    bundle: Segmenter,
    images: Sequence[AnnotatedImage],
    opener: ImageOpener,
    wanted: FineTuning,
    tracking_uri: str | None,
) -> dict[str, Any]:
    """Train and leave only weights in the folder; return the facts of the run."""
    domain = wanted.domain or next(iter(bundle.domains), "annotated")
    dataset = run_dir / "dataset"
    counts = write_annotated_dataset(
        dataset,
        images,
        opener,
        domain=domain,
        class_names=bundle.class_names,
        validation_share=wanted.validation_share,
    )
    logger.info("%s: training on %s", bundle.folder.name, counts)
    workflow = ConfigWorkflow(
        config_file=training_recipe(bundle),
        logging_file=False,
        workflow_type="train",
        **training_overrides(bundle, wanted, run_dir, domain, tracking_uri),
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    shutil.rmtree(dataset)
    for state in run_dir.glob("*state.safetensors"):
        state.unlink()
    return {
        "bundle": bundle.folder.name,
        "images": counts,
        "epochs": wanted.epochs,
        "domain": domain,
        "start": wanted.start,
        "weights_sha256": {file.name: sha256_of_file(file) for file in sorted(run_dir.glob("*.safetensors"))},
    }


def training_overrides(
    bundle: Segmenter, wanted: FineTuning, run_dir: Path, domain: str, tracking_uri: str | None
) -> dict[str, Any]:
    """Return the values of ``train.json`` for a fine-tuning: what ``monai.bundle run`` would get as options.

    Raises:
        ConfigurationError: the bundle has no ``train.json``.
    """
    config = _train_config(bundle.folder)
    seen: dict[str, Any] = {key: bundle.value(key) for key in ("image_size", "fit") if key in bundle.config}
    shared = {key: value for key, value in {**seen, **bundle.settings}.items() if key in config}
    own: dict[str, Scalar | list[str]] = {
        "bundle_root": str(bundle.folder.resolve()),
        "dataset_dir": str(run_dir / "dataset"),
        "output_dir": str(run_dir),
        "device": f"$torch.device('{bundle.device}')",
        "epochs": wanted.epochs,
        "val_interval": max(1, wanted.epochs // 5),
        "hide_progress": True,
        "resume": False,
        "split_protocol": None,
    }
    if wanted.start != FROM_SCRATCH and bundle.checkpoint is not None:
        own["checkpoint"] = str(bundle.checkpoint)
    if wanted.learning_rate:
        own["lr"] = wanted.learning_rate
    if tracking_uri is not None:
        own["tracking_uri"] = tracking_uri
    overrides: dict[str, Any] = {**shared, **{key: value for key, value in own.items() if key in config}}
    if domains := bundle.domains:
        # The network keeps the branches of all its domains, and only one of them sees images.
        overrides |= {"domains": [domain], "network_domains": list(domains)}
    return overrides


def training_recipe(bundle: Segmenter) -> list[str]:
    """Return the configurations that train such weights: ``train.json``, and the overlays of compact weights."""
    values = {key: bundle.value(key) for key in ("instances", "backbone") if key in bundle.config}
    shared = ["shared_encoder"] if values.get("backbone") == "shared" else []
    compact = values.get("instances") == "distance" or (shared and bundle.value("sam_variant") == "hybrid")
    overlays = [*shared, *(["compact"] if compact else [])]
    files = [bundle.folder / "configs" / f"{name}.json" for name in ("train", *overlays)]
    return [str(file) for file in files if file.stem == "train" or file.is_file()]


def _train_config(folder: Path) -> dict[str, Any]:
    file = folder / "configs" / "train.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{file}: cannot be read ({error}), so the bundle cannot be trained."
        ) from error
