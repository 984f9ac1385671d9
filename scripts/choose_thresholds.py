r"""Choose the thresholds of learned instances on validation images.

Example:
    python scripts/choose_thresholds.py unsam --weights output/compact/model.safetensors --dataset_dir data

Prints the mean AJI and PQ of every choice of thresholds, each dataset counting alike, and names the one with the
highest mean of both: what ``ship_weights.py`` writes into the weights.
"""

import itertools
import sys
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import nucsam_monai
from nucsam_monai.apps.command_line import run_command
from nucsam_monai.data import load_items
from nucsam_monai.data.converters.progress import with_progress
from nucsam_monai.io import read_image, read_label_map
from nucsam_monai.metrics import instance_metrics
from nucsam_monai.utils.instances import DistanceRule, distance_instances

Maps = tuple[str, NDArray[np.float16], NDArray[np.int32]]
"""Domain of an image, what the network found ``(2, H, W)``, and its label map ``(H, W)``."""


def main(
    bundle: str,
    dataset_dir: str,
    weights: str | None = None,
    split: str = "validation",
    thresholds: Sequence[float] = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7),
    marker_thresholds: Sequence[float] = (0.35, 0.4, 0.45, 0.5, 0.55),
    min_scores: Sequence[float] = (0.0, 0.3, 0.35, 0.4, 0.45, 0.5),
) -> None:
    """Measure every choice of thresholds.

    Args:
        bundle: name of a bundle with learned instances.
        dataset_dir: a dataset folder, or a folder of several.
        weights: as for ``load``.
        split: whose images are measured; the test images are not for choosing.
        thresholds: of the foreground.
        marker_thresholds: of the distance map.
        min_scores: of the nuclei that are kept.
    """
    import torch

    segmenter = nucsam_monai.load(bundle, weights)
    if "diameter" in segmenter.config:  # the thresholds are those of the images' own scale
        segmenter = nucsam_monai.load(bundle, weights, diameter=None)
    inferer = segmenter.value("inferer")
    maps: list[Maps] = []
    for item in with_progress(load_items(dataset_dir, split), "segmenting", "image"):
        with torch.inference_mode():
            found = inferer(segmenter.prepare(read_image(item["image"])), segmenter.network)
        truth = read_label_map(item["instances"])
        maps.append((item["domain"], found[0].half().cpu().numpy(), truth))
    means = {
        choice: _measure(maps, DistanceRule(choice[0], choice[1], min_score=choice[2]))
        for choice in itertools.product(thresholds, marker_thresholds, min_scores)
    }
    for (threshold, marker, score), found in means.items():
        parts = "  ".join(f"{domain} {aji:.4f} {pq:.4f}" for domain, (aji, pq) in found.items())
        sys.stdout.write(
            f"threshold {threshold:.2f} marker {marker:.2f} score {score:.2f}: {_both(found):.4f}  {parts}\n"
        )
    threshold, marker, score = max(means, key=lambda choice: _both(means[choice]))
    rule = f"{{'marker_threshold': {marker}, 'min_score': {score}}}"
    sys.stdout.write(
        f'best (mean {_both(means[threshold, marker, score]):.4f}): --threshold {threshold} --distance_rule "{rule}"\n'
    )


def _measure(maps: Sequence[Maps], rule: DistanceRule) -> dict[str, NDArray[np.float64]]:
    """Return the mean AJI and PQ ``(2,)`` of every dataset."""
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for domain, found, truth in maps:
        foreground, distance = found.astype(np.float32)
        scores = instance_metrics(truth, distance_instances(foreground, distance, rule))
        rows[domain].append((scores.aji, scores.pq))
    return {domain: np.nanmean(values, axis=0) for domain, values in rows.items()}


def _both(means: dict[str, NDArray[np.float64]]) -> float:
    return float(np.mean(list(means.values())))


if __name__ == "__main__":
    sys.exit(run_command(main))
