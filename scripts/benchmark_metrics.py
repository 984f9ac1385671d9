"""Time the metrics on synthetic nuclei.

Example::

    python scripts/benchmark_metrics.py --sizes 256,1000,2000 --repeats 20 --output metrics.json
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fire
import numpy as np
import scipy

import nucsam_monai
from nucsam_monai.metrics import contingency_table, foreground_metrics, instance_metrics
from nucsam_monai.utils.files import atomic_path

PIXELS_PER_NUCLEUS = 1400  # about 700 nuclei in 1000 x 1000 pixels, as in a 40x tile
MONAI_SIZE_PX = (
    256  # MONAI's panoptic quality makes one mask per nucleus; larger images take seconds and gigabytes
)


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
    """Return the fastest and the median time of ``repeats`` calls after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append((time.perf_counter() - start) * 1e3)
    return {"min_ms": round(min(times), 3), "median_ms": round(statistics.median(times), 3)}


def machine() -> dict[str, Any]:
    """Describe where the numbers come from."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "nucsam_monai": nucsam_monai.__version__,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def benchmark_size(size_px: int, seed: int, repeats: int) -> dict[str, Any]:
    """Time every metric on one image size."""
    y, y_pred = nuclei(size_px, seed)
    table = contingency_table(y, y_pred)
    return {
        "size_px": size_px,
        "nuclei": len(table.y_ids),
        "predicted": len(table.y_pred_ids),
        "overlaps": len(table.overlap_areas_px),
        "values": instance_metrics(y, y_pred)._asdict(),
        "contingency_table": milliseconds(lambda: contingency_table(y, y_pred), repeats),
        "aji_aji_plus_pq": milliseconds(lambda: instance_metrics(y, y_pred), repeats),
        "dice_iou_pr_hd_hd95": milliseconds(lambda: foreground_metrics(y, y_pred), max(1, repeats // 5)),
    }


def benchmark_monai(seed: int, repeats: int) -> dict[str, Any]:
    """Time MONAI's panoptic quality and ours on the same small image."""
    import monai
    import torch

    y, y_pred = nuclei(MONAI_SIZE_PX, seed)
    truth, prediction = torch.as_tensor(y), torch.as_tensor(y_pred)
    return {
        "size_px": MONAI_SIZE_PX,
        "monai": monai.__version__,
        "monai_pq": milliseconds(
            lambda: monai.metrics.compute_panoptic_quality(prediction, truth), max(1, repeats // 5)
        ),
        "aji_aji_plus_pq": milliseconds(lambda: instance_metrics(y, y_pred), repeats),
    }


def main(
    sizes: int | Sequence[int] = (256, 512, 1000, 2000),
    seed: int = 0,
    repeats: int = 20,
    with_monai: bool = False,
    output: str | None = None,
) -> None:
    """Print the milliseconds per image of the metrics, and write them as JSON with ``--output``.

    Args:
        sizes: side lengths of the square images in pixels, for example ``256,1000``.
        seed: seed of the synthetic nuclei.
        repeats: timed calls per metric; a fifth of them for the slower ones.
        with_monai: also time MONAI's panoptic quality at 256 pixels.
        output: path of the JSON file.
    """
    report: dict[str, Any] = {"machine": machine(), "seed": seed, "repeats": repeats, "sizes": []}
    for name, value in report["machine"].items():
        print(f"{name}: {value}")
    for size_px in [sizes] if isinstance(sizes, int) else sizes:
        row = benchmark_size(size_px, seed, repeats)
        report["sizes"].append(row)
        print(f"{size_px} x {size_px} px, {row['nuclei']} nuclei, {row['overlaps']} overlaps")
        _print_times(row)
    if with_monai:
        report["monai"] = benchmark_monai(seed, repeats)
        print(f"{MONAI_SIZE_PX} x {MONAI_SIZE_PX} px beside MONAI {report['monai']['monai']}")
        _print_times(report["monai"])
    if output is not None:
        with atomic_path(output) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")


def _print_times(row: dict[str, Any]) -> None:
    for name, times in row.items():
        if isinstance(times, dict) and "min_ms" in times:
            print(f"  {name:<22} min {times['min_ms']:9.2f} ms   median {times['median_ms']:9.2f} ms")


if __name__ == "__main__":
    fire.Fire(main)
