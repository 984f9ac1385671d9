"""Measure one image of an evaluation by every requested protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nucsam_monai.metrics.classes import classes_of, image_mpq, match_per_class
from nucsam_monai.metrics.detection import DetectionAccumulator, GreedyDetection, HovernetDetection
from nucsam_monai.metrics.foreground import foreground_metrics, threshold_mean, weighted_scores
from nucsam_monai.metrics.instance import dice2, instance_metrics, object_scores, qualities
from nucsam_monai.metrics.pair import LabelPair, refuse_negative_ids
from nucsam_monai.utils.errors import ConfigurationError, NucSAMError
from nucsam_monai.utils.label_runs import majority_values

Protocol = Literal["foreground", "instance", "objects", "classes", "detection"]

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
"""Families of metrics that an evaluation can measure."""

DETECTION_PROTOCOLS: Mapping[str, type[DetectionAccumulator]] = {
    "hovernet": HovernetDetection,
    "greedy": GreedyDetection,
}

OBJECT_THRESHOLDS = (0.5, 0.75, 0.9)
"""IoU at which object F1 and average precision are measured."""

_THRESHOLD_COLUMNS = ("dice_5_thresholds", "iou_5_thresholds")


@dataclass(frozen=True)
class EvaluationSample:
    """Hold the ground truth and the prediction of one image.

    Attributes:
        id: name of the image, unique within its domain.
        y: ``(H, W)`` ground truth, integers >= 0, 0 = background.
        y_pred: ``(H, W)`` prediction in the same format.
        y_classes: ``{id in y: class id}``, class ids from 0.
        y_pred_classes: ``{id in y_pred: class id}``.
        scores: ``{id in y_pred: confidence}``; without, all predictions are equally confident.
        probability: ``(H, W)`` predicted foreground probability; with it Dice and IoU are also measured as means
            over five thresholds.
        tissue: organ or tissue.
        group: slide or patient that several images come from.
        domain: dataset that the image belongs to.
        fold: test fold that the image was predicted in.
    """

    id: str
    y: ArrayLike
    y_pred: ArrayLike
    y_classes: Mapping[int, int] | None = None
    y_pred_classes: Mapping[int, int] | None = None
    scores: Mapping[int, float] | None = None
    probability: ArrayLike | None = None
    tissue: str | None = None
    group: str | None = None
    domain: str | None = None
    fold: str | None = None


@dataclass(frozen=True)
class EvaluationSettings:
    """Choose what is measured.

    Attributes:
        class_names: names of the classes; only one for data without classes.
        radius_px: distance within which a centroid counts as detected; None where detection isn't measured.
        protocols: the families of metrics.
    """

    class_names: tuple[str, ...]
    radius_px: float | None
    protocols: frozenset[Protocol]


@dataclass(frozen=True)
class ImageMeasurement:
    """Hold the measurements of one image.

    Attributes:
        texts: id and whatever else describes the image.
        metrics: value of every per-image metric, NaN where it has none.
        counts: arrays that are added over images before metrics of the whole dataset are computed, by protocol.
    """

    texts: Mapping[str, str]
    metrics: Mapping[str, float]
    counts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def measure_image(sample: EvaluationSample, settings: EvaluationSettings) -> ImageMeasurement:
    """Measure one image by every protocol of the settings; its instances are counted once.

    Raises:
        ConfigurationError: the label maps do not fit each other, or classes are missing; the message names the
            image.
    """
    metrics: dict[str, float] = {}
    counts: dict[str, NDArray[np.float64]] = {}
    try:
        pair = LabelPair(sample.y, sample.y_pred)
        if "foreground" in settings.protocols:
            metrics |= _foreground(pair, sample.probability)
        if "instance" in settings.protocols:
            metrics |= instance_metrics(pair)._asdict()
        if "objects" in settings.protocols:
            metrics |= _objects(pair)
        if settings.protocols & {"classes", "detection"}:
            classes = _class_ids(pair, sample, settings)
            if "classes" in settings.protocols:
                found = match_per_class(pair, *classes, len(settings.class_names))
                counts["classes"] = np.column_stack(found).astype(np.float64)
                metrics |= _class_metrics(counts["classes"], settings)
            if "detection" in settings.protocols:
                counts |= _detection_counts(pair, classes, sample.scores, settings)
    except NucSAMError as error:
        raise ConfigurationError(f"image {sample.id}: {error}") from error
    texts = {
        name: str(value)
        for name in ("id", "domain", "tissue", "group", "fold")
        if (value := getattr(sample, name)) is not None
    }
    return ImageMeasurement(texts, metrics, counts)


def class_column(class_name: str) -> str:
    """Return the name of the per-image column with the PQ of one class."""
    return f"pq_{class_name}"


def skip_reason(metric: str, settings: EvaluationSettings) -> str:
    """Return why an image has no value of a per-image metric."""
    for name in settings.class_names:
        if metric == class_column(name):
            return f"no ground-truth nucleus of class {name}"
    if metric in _THRESHOLD_COLUMNS:
        return "no probability map"
    if metric.startswith(("object_f1_", "ap_")):
        return "neither a nucleus nor a prediction"
    return "no ground-truth nucleus"


def majority_classes(instances: ArrayLike, class_map: ArrayLike) -> dict[int, int]:
    """Return the class of every instance that most of its pixels have in a map of classes.

    Background pixels of the class map do not vote; equal votes go to the lower class. An instance without any
    vote is left out.

    Args:
        instances: ``(H, W)`` integers >= 0, 0 = background.
        class_map: ``(H, W)`` integers >= 0; 0 = background, 1 = class id 0, 2 = class id 1 and so on.

    Raises:
        ConfigurationError: the maps are not two label maps of one shape.

    Example:
        >>> majority_classes([[4, 4, 4, 0, 9]], [[1, 3, 3, 1, 0]])
        {4: 2}
    """
    maps = LabelPair(instances, class_map)
    refuse_negative_ids("instances", maps.y)
    refuse_negative_ids("class_map", maps.y_pred)
    return {label: value - 1 for label, value in majority_values(maps.y, maps.y_pred).items()}


def _foreground(pair: LabelPair, probability: ArrayLike | None) -> dict[str, float]:
    values = foreground_metrics(pair)._asdict() | weighted_scores(pair)._asdict()
    if probability is not None:
        values |= dict(zip(_THRESHOLD_COLUMNS, threshold_mean(pair.y, probability), strict=True))
    return values


def _objects(pair: LabelPair) -> dict[str, float]:
    found = object_scores(pair, thresholds=OBJECT_THRESHOLDS)
    columns = {"object_f1": found.f1, "ap": found.average_precision}
    values = {
        f"{name}_{100 * threshold:.0f}": float(value)
        for name, scores in columns.items()
        for threshold, value in zip(OBJECT_THRESHOLDS, scores, strict=True)
    }
    return {"dice2": dice2(pair), **values}


def _class_ids(
    pair: LabelPair, sample: EvaluationSample, settings: EvaluationSettings
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the class of every row and of every column of the pair's table; of one class, all have it."""
    y_ids, y_pred_ids = pair.table.y_ids, pair.table.y_pred_ids
    class_count = len(settings.class_names)
    if class_count == 1:
        return np.zeros(len(y_ids), np.int64), np.zeros(len(y_pred_ids), np.int64)
    # an image without nuclei may come without classes; for any other the lookup of its ids complains
    return (
        classes_of("y_classes", y_ids, sample.y_classes or {}, class_count),
        classes_of("y_pred_classes", y_pred_ids, sample.y_pred_classes or {}, class_count),
    )


def _class_metrics(counts: NDArray[np.float64], settings: EvaluationSettings) -> dict[str, float]:
    class_pq = qualities(*counts.T)[2]
    columns = map(class_column, settings.class_names)
    return {"mpq": image_mpq(class_pq), **dict(zip(columns, class_pq.tolist(), strict=True))}


def _detection_counts(
    pair: LabelPair,
    classes: tuple[NDArray[np.int64], NDArray[np.int64]],
    scores: Mapping[int, float] | None,
    settings: EvaluationSettings,
) -> dict[str, NDArray[np.float64]]:
    confidence = None if scores is None else _scores(pair.table.y_pred_ids.tolist(), scores)
    points = pair.y_xy, classes[0], pair.y_pred_xy, classes[1], confidence
    return {
        name: protocol(len(settings.class_names), settings.radius_px or 0)
        .count_image(*points)
        .astype(np.float64)
        for name, protocol in DETECTION_PROTOCOLS.items()
    }


def _scores(ids: list[int], scores: Mapping[int, float]) -> NDArray[np.float64]:
    missing = [label for label in ids if label not in scores]
    if missing:
        raise ConfigurationError(
            f"scores: {len(missing)} of {len(ids)} instances have no score, for example {missing[:5]}. "
            "Give every id of y_pred a score, or none."
        )
    return np.array([scores[label] for label in ids], dtype=np.float64)
