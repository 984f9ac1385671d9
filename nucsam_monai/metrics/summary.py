"""From one row per image to one row per domain."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nucsam_monai.metrics.foreground import f1_mean_pr

ALL_IMAGES = "all images"


def summarise_by_domain(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average the metrics of every domain over its images, and of all images together.

    NaN values (AJI and PQ of images without nuclei) are left out of the means; ``skipped_images`` counts the
    images for which that happened. ``f1_mean_pr`` is the F1 of the mean precision and recall.

    Args:
        rows: one mapping per image with ``id``, ``domain`` and numbers.

    Returns:
        One row per domain in order of appearance, then, of several domains, one for all images.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row["domain"]), []).append(row)
    if len(groups) > 1:
        groups[ALL_IMAGES] = list(rows)
    return [{"domain": name, "images": len(group), **_means(group)} for name, group in groups.items()]


def _means(group: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    columns = {
        key: np.array([row[key] for row in group], dtype=np.float64)
        for key, value in group[0].items()
        if isinstance(value, (int, float)) and key not in ("id", "domain")
    }
    means: dict[str, float] = {}
    for key, values in columns.items():
        measured = values[~np.isnan(values)]
        means[key] = float(measured.mean()) if len(measured) else float("nan")
    if {"precision", "recall"} <= columns.keys():
        means["f1_mean_pr"] = f1_mean_pr([means["precision"]], [means["recall"]])
    means["skipped_images"] = int(max((np.isnan(values).sum() for values in columns.values()), default=0))
    return means
