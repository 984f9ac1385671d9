"""Time the metrics on synthetic nuclei, next to slow references and MONAI.

Example::

    python scripts/benchmark_metrics.py --sizes 256,1000,2000 --repeats 20 --output metrics.json
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fire
import numpy as np

from nucsam_monai.metrics import (
    DetectionScore,
    EvaluationSample,
    HovernetDetection,
    InstanceMetrics,
    LabelPair,
    contingency_table,
    evaluation_settings,
    foreground_metrics,
    instance_metrics,
    match_points,
    match_points_hungarian,
    measure_image,
)
from nucsam_monai.metrics.detection import PointMatcher
from nucsam_monai.utils.files import atomic_path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the references live next to the tests
from scripts.benchmarking import origin, seconds, take_turns
from tests.oracles import metrics_instance as slow_instance
from tests.oracles import metrics_points as slow_points

PIXELS_PER_NUCLEUS = 1400  # about 700 nuclei in 1000 x 1000 pixels, as in a 40x tile
RADIUS_PX = 12.0


def nuclei(size_px: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(size, size)`` int32 discs and a displaced, resized and thinned-out copy as the prediction."""
    rng = np.random.default_rng(seed)
    count = size_px**2 // PIXELS_PER_NUCLEUS
    centres, radii = rng.uniform(0, size_px, (count, 2)), rng.uniform(7, 14, count)
    y = _discs(size_px, centres, radii)
    found = rng.random(count) < 0.95
    y_pred = _discs(
        size_px, (centres + rng.normal(0, 1.5, (count, 2)))[found], (radii * rng.normal(1, 0.1, count))[found]
    )
    return y, y_pred


def _discs(size_px: int, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    labels = np.zeros((size_px, size_px), np.int32)
    for label, ((row, column), radius) in enumerate(zip(centres, radii, strict=True), start=1):
        top, left = max(int(row - radius), 0), max(int(column - radius), 0)
        box = labels[top : int(row + radius) + 2, left : int(column + radius) + 2]
        rows, columns = np.ogrid[top : top + box.shape[0], left : left + box.shape[1]]
        box[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = label
    return labels


def milliseconds(function: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Return the times of ``repeats`` calls after one that is not counted."""
    return take_turns({"": function}, repeats)[""]


def measure(y: np.ndarray, y_pred: np.ndarray, match: PointMatcher) -> tuple[InstanceMetrics, DetectionScore]:
    """Return AJI, AJI+, DQ, SQ, PQ and the detection scores of one image, from one pass over its pixels."""
    pair = LabelPair(y, y_pred)
    detection = HovernetDetection(1, RADIUS_PX, match)
    classes, pred_classes = (np.zeros(len(xy), int) for xy in (pair.y_xy, pair.y_pred_xy))
    detection.update(pair.y_xy, classes, pair.y_pred_xy, pred_classes)
    return instance_metrics(pair), detection.result().detection


def measure_slowly(y: np.ndarray, y_pred: np.ndarray) -> tuple[tuple[float, ...], int]:
    """Return the same AJI, AJI+, DQ, SQ, PQ and counts, and the true positives, by the tests' references."""
    values = slow_instance.aji(y, y_pred), slow_instance.aji_plus_dense(y, y_pred)
    true_xy, pred_xy = (np.array(list(slow_points.centroids(labels).values())) for labels in (y, y_pred))
    found = slow_points.cut_off(true_xy, pred_xy, RADIUS_PX)
    return (*values, *slow_instance.panoptic(y, y_pred)), len(found)


def benchmark_size(size_px: int, seed: int, repeats: int) -> dict[str, Any]:
    """Time every metric on one image size."""
    y, y_pred = nuclei(size_px, seed)
    table, few = contingency_table(y, y_pred), max(1, repeats // 5)
    instance, detection = measure(y, y_pred, match_points)
    sample, everything = EvaluationSample("synthetic", y, y_pred), evaluation_settings(radius_px=RADIUS_PX)
    no_hd95 = replace(everything, protocols=everything.protocols - {"foreground"})
    return {
        "size_px": size_px,
        "nuclei": len(table.y_ids),
        "predicted": len(table.y_pred_ids),
        "overlaps": len(table.overlap_areas_px),
        "values": instance._asdict(),
        "detection": detection._asdict(),
        "contingency_table": milliseconds(lambda: contingency_table(y, y_pred), repeats),
        "aji_aji_plus_pq": milliseconds(lambda: instance_metrics(y, y_pred), repeats),
        "with_detection": milliseconds(lambda: measure(y, y_pred, match_points), repeats),
        "with_hungarian": milliseconds(lambda: measure(y, y_pred, match_points_hungarian), few),
        "measure_image": milliseconds(lambda: measure_image(sample, everything), few),
        "measure_image_without_foreground": milliseconds(lambda: measure_image(sample, no_hd95), few),
        "dice_iou_pr_hd_hd95": milliseconds(lambda: foreground_metrics(y, y_pred), few),
    }


def benchmark_references(size_px: int, seed: int, row: dict[str, Any]) -> dict[str, Any]:
    """Time the tests' references and MONAI once, and say how far their values are from ours."""
    import torch
    from monai.metrics import PanopticQualityMetric

    y, y_pred = nuclei(size_px, seed)
    torch.set_num_threads(1)
    # one channel of ids and one of classes
    truth, prediction = (torch.as_tensor(np.stack((m, m > 0)))[None] for m in (y, y_pred))
    metric = PanopticQualityMetric(num_classes=1)
    monai_ms, _ = _timed(lambda: metric(prediction, truth))
    oracle_ms, (values, found) = _timed(lambda: measure_slowly(y, y_pred))
    ours = (*row["values"].values(), row["detection"]["tp"])
    return {
        "slow_reference": {"ms": oracle_ms},
        "slow_reference_difference": max(abs(a - b) for a, b in zip(ours, (*values, found), strict=True)),
        "monai_pq": {"ms": monai_ms},
        "monai_pq_difference": abs(float(metric.aggregate()) - row["values"]["pq"]),
    }


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    results: list[Any] = []
    wall, _ = seconds(lambda: results.append(function()))
    return round(wall * 1e3, 1), results[0]


def main(
    sizes: int | Sequence[int] = (256, 512, 1000, 2000),
    seed: int = 0,
    repeats: int = 20,
    references_up_to_px: int = 512,
    output: str | None = None,
) -> None:
    """Print the milliseconds per image of the metrics, and write them as JSON with ``--output``.

    Args:
        sizes: side lengths of the square images in pixels, for example ``256,1000``.
        seed: seed of the synthetic nuclei.
        repeats: timed calls per metric; a fifth of them for the slower ones.
        references_up_to_px: largest image for MONAI and the slow references, which run once. At 1000 pixels
            they take about a minute and MONAI 5 GB; 0 leaves them out.
        output: path of the JSON file.
    """
    report: dict[str, Any] = {"machine": origin(), "seed": seed, "repeats": repeats, "sizes": []}
    for name, value in report["machine"].items():
        print(f"{name}: {value}")
    for size_px in [sizes] if isinstance(sizes, int) else sizes:
        row = benchmark_size(size_px, seed, repeats)
        if size_px <= references_up_to_px:
            row |= benchmark_references(size_px, seed, row)
        report["sizes"].append(row)
        print(f"{size_px} x {size_px} px, {row['nuclei']} nuclei, {row['overlaps']} overlaps")
        _print_times(row)
    _print_table(report["sizes"])
    if output is not None:
        with atomic_path(output) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")


def _print_times(row: dict[str, Any]) -> None:
    for name, times in row.items():
        if isinstance(times, dict) and "min_ms" in times:
            print(f"  {name:<32} min {times['min_ms']:9.2f} ms   median {times['median_ms']:9.2f} ms")
        elif name.endswith("_difference"):
            print(f"  {name:<30} {times:.1e}")


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print AJI + AJI+ + PQ + detection of all sizes next to the references."""
    print("\nAJI + AJI+ + PQ + detection, fastest of the repeats, in milliseconds per image")
    print("(hungarian: with the pairing of the published protocol; the references run once, MONAI: PQ only)")
    titles = ("size", "nuclei", "ours", "hungarian", "slow reference", "MONAI PQ")
    print("".join(f"{title:>16}" for title in titles))
    for row in rows:
        cells = [f"{row['size_px']} px", str(row["nuclei"])]
        cells += [f"{row[name]['min_ms']:.2f}" for name in ("with_detection", "with_hungarian")]
        cells += [f"{row[name]['ms']:.0f}" if name in row else "-" for name in ("slow_reference", "monai_pq")]
        print("".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    fire.Fire(main)
