"""Measure a bundle on images as users bring them: enlarged, reduced, grey, inverted, compressed, of 16 bits.

Example:
    python scripts/benchmark_robustness.py unsam --dataset_dir data/dsb2018 --output output/robustness.json

Every image is changed in one way after the other and segmented by ``load(bundle).segment``, as a user does. Prints a
Markdown table of the mean AJI and PQ of every dataset. Enlarged and reduced images are compared with truth that is
enlarged and reduced in the same way.
"""

import io
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import nucsam_monai
from nucsam_monai.apps.command_line import run_command
from nucsam_monai.data import load_items
from nucsam_monai.data.converters.progress import with_progress
from nucsam_monai.io import read_image, read_label_map, write_json
from nucsam_monai.metrics import instance_metrics
from nucsam_monai.utils.machine import processor_name

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


def resized(pixels: Pixels, zoom: float) -> NDArray[np.uint8]:
    """Return an image at another magnification."""
    height, width = pixels.shape[:2]
    size = (round(width * zoom), round(height * zoom))
    return np.array(
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC if zoom > 1 else Image.Resampling.BOX)
    )


def grey(pixels: Pixels) -> NDArray[np.uint8]:
    """Return the luminance in one channel."""
    return np.array(Image.fromarray(pixels).convert("L"))


def jpeg(pixels: Pixels, quality: int = 50) -> NDArray[np.uint8]:
    """Return an image after compression."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


CHANGES: dict[str, tuple[float, Callable[[Pixels], Pixels]]] = {
    "as published": (1.0, lambda pixels: pixels),
    "half the size": (0.5, lambda pixels: resized(pixels, 0.5)),
    "twice the size": (2.0, lambda pixels: resized(pixels, 2.0)),
    "grey": (1.0, grey),
    "inverted": (1.0, lambda pixels: 255 - pixels),
    "JPEG of quality 50": (1.0, jpeg),
    "16 bits, a quarter of the range": (1.0, lambda pixels: pixels.astype(np.uint16) * 64 + 500),
}
"""Name of a change to the zoom it brings and the change of ``(H, W, 3)`` uint8 pixels."""


def main(
    bundle: str, dataset_dir: str, weights: str | None = None, split: str = "test", output: str | None = None
) -> None:
    """Segment every image of a split after every change.

    Args:
        bundle: name of a bundle.
        dataset_dir: a dataset folder, or a folder of several.
        weights: as for ``load``.
        split: whose images are measured; ``all`` takes those of every split.
        output: JSON file for the results.
    """
    segmenter = nucsam_monai.load(bundle, weights)
    splits = ["training", "validation", "test"] if split == "all" else split
    scores: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in CHANGES}
    for item in with_progress(load_items(dataset_dir, splits), "measuring", "image"):
        pixels, truth = read_image(item["image"]), read_label_map(item["instances"])
        for name, (zoom, change) in CHANGES.items():
            changed = change(pixels)
            height, width = changed.shape[:2]
            rows, columns = (
                np.minimum(((np.arange(size) + 0.5) / zoom).astype(int), full - 1)
                for size, full in zip((height, width), truth.shape, strict=True)
            )
            metrics = instance_metrics(truth[rows][:, columns], segmenter.segment(changed).instances)
            scores[name].setdefault(item["domain"], []).append((metrics.aji, metrics.pq))
    means = {
        name: {domain: np.nanmean(values, axis=0).round(4).tolist() for domain, values in of_domain.items()}
        for name, of_domain in scores.items()
    }
    domains = list(next(iter(means.values())))
    lines = [
        f"| image | {' | '.join(f'{one} AJI / PQ' for one in domains)} |",
        "|---|" + "---|" * len(domains),
    ]
    for name, of_domain in means.items():
        values = (f"{aji:.3f} / {pq:.3f}" for aji, pq in of_domain.values())
        lines.append(f"| {name} | {' | '.join(values)} |")
    sys.stdout.write("\n".join(lines) + "\n")
    if output is not None:
        facts: dict[str, Any] = {"bundle": bundle, "weights": weights, "split": split}
        machine = {"processor": processor_name(), "torch": version("torch")}
        write_json(output, {**facts, **machine, "aji_and_pq": means})


if __name__ == "__main__":
    sys.exit(run_command(main))
