"""Evaluate the predictions of a whole dataset and report the result."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.metrics.measurement import (
    DETECTION_PROTOCOLS,
    PROTOCOLS,
    EvaluationSample,
    EvaluationSettings,
    ImageMeasurement,
    Protocol,
    class_column,
    measure_image,
    skip_reason,
)
from nucsam_monai.metrics.statistics import Bootstrap, Estimate, Statistic, estimate, mean_statistic
from nucsam_monai.metrics.summary import (
    ALL_IMAGES,
    ClassSummary,
    DatasetEvaluation,
    SkippedImages,
    detection_statistic,
    pooled_class_statistic,
    pooled_quality_statistic,
    resampling_units,
    summarise,
    table_statistics,
    tissue_statistic,
)
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.names import distinct_names
from nucsam_monai.utils.parallel import map_in_order

_Counts = Mapping[str, NDArray[np.float64]]


def evaluate(
    samples: Iterable[EvaluationSample],
    *,
    class_names: Sequence[str] = ("nucleus",),
    radius_px: float | None = None,
    protocols: Collection[Protocol] | None = None,
    bootstrap: Bootstrap | None = None,
    workers: int = 1,
) -> DatasetEvaluation:
    """Measure a whole dataset.

    Samples are measured one by one, so a generator that reads them needs little memory. Means are over images; images
    without a value (NaN) are left out and counted in ``skipped``. Confidence intervals are bootstrapped over images, or
    over groups if samples have a group, because images of one slide or patient are not independent. The order of the
    samples does not matter.

    Args:
        samples: ground truth and prediction of every image.
        class_names: names of the classes; one name without classes.
        radius_px: distance within which a centroid counts as detected, see
            :func:`nucsam_monai.metrics.matching_radius_px`; None leaves detection out.
        protocols: which families of metrics to measure: ``"foreground"`` (Dice, IoU, Hausdorff distance),
            ``"instance"`` (AJI, PQ), ``"objects"`` (F1 and average precision at IoU thresholds, Dice 2),
            ``"classes"`` (PQ of each class, mPQ, mPQ+), ``"detection"`` (centroids). By default all that the other
            arguments permit.
        bootstrap: how intervals are computed; 95 % from 2000 resamples by default.
        workers: processes that measure. With more than one, a script needs the usual
            ``if __name__ == "__main__"``.

    Raises:
        ConfigurationError: there is no sample, an image occurs twice, its label maps don't fit each other, its
            classes are missing, or an option is not allowed.

    Example:
        >>> truth = np.array([[1, 1, 0, 2]])
        >>> report = evaluate([EvaluationSample("a", truth, truth), EvaluationSample("b", truth, 0 * truth)])
        >>> report.summary[0].estimates["aji"].value
        0.5
    """
    settings = evaluation_settings(class_names, radius_px, protocols)
    return evaluation_of(_measure(samples, settings, workers), settings, bootstrap)


def evaluation_of(
    measured: Iterable[ImageMeasurement], settings: EvaluationSettings, bootstrap: Bootstrap | None = None
) -> DatasetEvaluation:
    """Summarise images that were measured one by one, when there is no iterable of samples.

    Args:
        measured: measurement of every image, from :func:`nucsam_monai.metrics.measure_image`.
        settings: metrics that were measured, with their options.
        bootstrap: how intervals are computed; 95 % from 2000 resamples by default.

    Raises:
        ConfigurationError: there is no image, or one occurs twice.
    """
    bootstrap = bootstrap or Bootstrap()
    measurements = sorted(measured, key=_key)
    _check_images(measurements)
    rows = tuple({**found.texts, **found.metrics} for found in measurements)
    counts = {
        name: np.stack([found.counts[name] for found in measurements]) for name in measurements[0].counts
    }
    narrow = _without_classes(rows, settings)
    statistics = table_statistics(narrow) + _pooled_statistics(counts)
    return DatasetEvaluation(
        settings=settings,
        bootstrap=bootstrap,
        unit="group" if any("group" in row for row in rows) else "image",
        units=len(set(resampling_units(rows))),
        per_image=rows,
        summary=tuple(summarise(narrow, "domain", statistics, bootstrap)),
        per_tissue=tuple(summarise(narrow, "tissue", statistics, bootstrap)),
        per_class=_per_class(rows, counts, settings, bootstrap),
        tissue_means=_tissue_means(rows, bootstrap),
        skipped=_skipped(rows, settings),
    )


def evaluation_settings(
    class_names: Sequence[str] = ("nucleus",),
    radius_px: float | None = None,
    protocols: Collection[Protocol] | None = None,
) -> EvaluationSettings:
    """Return what :func:`evaluate` measures for these arguments.

    Raises:
        ConfigurationError: names that are not different, an unknown protocol, or detection without a radius.
    """
    class_names = distinct_names(class_names, "class_names")
    if protocols is None:
        possible = {"classes": len(class_names) > 1, "detection": radius_px is not None}
        protocols = [name for name in PROTOCOLS if possible.get(name, True)]
    unknown = sorted(set(protocols) - set(PROTOCOLS))
    if isinstance(protocols, str) or unknown or not protocols:
        raise ConfigurationError(
            f"protocols: expected some of {', '.join(PROTOCOLS)}, found {unknown or protocols!r}."
        )
    if "detection" in protocols and (radius_px is None or not 0 < radius_px < float("inf")):
        raise ConfigurationError(
            f"radius_px: detection needs a positive radius in pixels, found {radius_px}. "
            "matching_radius_px gives it for a magnification: 12 at 40x, 6 at 20x."
        )
    return EvaluationSettings(tuple(class_names), radius_px, frozenset(protocols))


def _measure(
    samples: Iterable[EvaluationSample], settings: EvaluationSettings, workers: int
) -> Iterator[ImageMeasurement]:
    """Yield the measurement of every sample; never hold more than a few samples."""
    if workers < 1:
        raise ConfigurationError(f"workers: expected at least 1, found {workers}.")
    for _, measurement in map_in_order(partial(measure_image, settings=settings), samples, workers=workers):
        yield measurement


def _key(measurement: ImageMeasurement) -> tuple[str, str]:
    return measurement.texts.get("domain", ""), measurement.texts["id"]


def _check_images(measurements: Sequence[ImageMeasurement]) -> None:
    if not measurements:
        raise ConfigurationError("evaluate: found no sample, expected at least one image.")
    for before, after in itertools.pairwise(map(_key, measurements)):
        if before == after:
            raise ConfigurationError(
                f"evaluate: image {after[1]} occurs twice. Give every image of a domain an id of its own."
            )


def _without_classes(
    rows: Sequence[Mapping[str, Any]], settings: EvaluationSettings
) -> list[Mapping[str, Any]]:
    """Return the rows that are averaged: all have a domain, and none the PQ of single classes.

    Those have a table of their own, and images without a rare class aren't skipped images.
    """
    single = set(map(class_column, settings.class_names))
    return [
        {"domain": ALL_IMAGES, **{key: value for key, value in row.items() if key not in single}}
        for row in rows
    ]


def _pooled_statistics(counts: _Counts) -> list[Statistic]:
    statistics = [pooled_quality_statistic(counts["classes"])] if "classes" in counts else []
    return statistics + [
        detection_statistic(name, counts[name]) for name in DETECTION_PROTOCOLS if name in counts
    ]


def _per_class(
    rows: Sequence[Mapping[str, Any]], counts: _Counts, settings: EvaluationSettings, bootstrap: Bootstrap
) -> tuple[ClassSummary, ...]:
    if "classes" not in counts:
        return ()
    summaries = []
    for class_id, name in enumerate(settings.class_names):
        pq = np.array([row[class_column(name)] for row in rows])
        of_class = counts["classes"][:, class_id]
        statistics = [mean_statistic("pq", pq), pooled_class_statistic(of_class)]
        statistics += [
            detection_statistic(protocol, counts[protocol], 1 + class_id)
            for protocol in DETECTION_PROTOCOLS
            if protocol in counts
        ]
        estimates = estimate(statistics, resampling_units(rows), bootstrap)
        summaries.append(ClassSummary(name, int((~np.isnan(pq)).sum()), estimates))
    return tuple(summaries)


def _tissue_means(rows: Sequence[Mapping[str, Any]], bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Return bPQ and mPQ by tissue and globally, over the images whose tissue is known."""
    known = [row for row in rows if "tissue" in row]
    tissues, folds = [row["tissue"] for row in known], [row.get("fold", "") for row in known]
    statistics = [
        tissue_statistic(name, np.array([row[column] for row in known]), tissues, folds)
        for name, column in (("bpq", "pq"), ("mpq", "mpq"))
        if known and column in known[0]
    ]
    return estimate(statistics, resampling_units(known), bootstrap)


def _skipped(rows: Sequence[Mapping[str, Any]], settings: EvaluationSettings) -> tuple[SkippedImages, ...]:
    found = []
    for metric in dict.fromkeys(
        key for row in rows for key, value in row.items() if isinstance(value, float)
    ):
        images = sum(np.isnan(row.get(metric, np.nan)) for row in rows)
        if images:
            found.append(SkippedImages(metric, int(images), skip_reason(metric, settings)))
    if any("tissue" in row for row in rows) and (without := sum("tissue" not in row for row in rows)):
        found.append(SkippedImages("tissue means", without, "no tissue given"))
    return tuple(found)
