r"""Choose the thresholds of learned instances on validation images.

Example:
    python scripts/choose_thresholds.py unsam --weights output/compact/model.safetensors --dataset_dir data

Prints the mean AJI and PQ of every pair of thresholds, each dataset counting alike, and names the pair with the highest
mean of both: what ``ship_weights.py`` writes into the weights.
"""

import itertools
import sys
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from nucsam_monai import load
from nucsam_monai.apps.command_line import run_command
from nucsam_monai.data import load_items
from nucsam_monai.data.converters.progress import with_progress
from nucsam_monai.io import read_image, read_label_map
from nucsam_monai.metrics import instance_metrics
from nucsam_monai.utils.instances import DistanceRule, distance_instances


def main(
    bundle: str,
    dataset_dir: str,
    weights: str | None = None,
    split: str = "validation",
    thresholds: Sequence[float] = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7),
    marker_thresholds: Sequence[float] = (0.35, 0.4, 0.45, 0.5, 0.55),
) -> None:
    """Measure every pair of thresholds.

    Args:
        bundle: name of a bundle with learned instances.
        dataset_dir: a dataset folder, or a folder of several.
        weights: as for ``load``.
        split: whose images are measured; the test images are not for choosing.
        thresholds: of the foreground.
        marker_thresholds: of the distance map.
    """
    segmenter = load(bundle, weights)
    if "diameter" in segmenter.config:  # the thresholds are those of the images' own scale
        segmenter = load(bundle, weights, diameter=None)
    inferer = segmenter.value("inferer")
    maps: list[tuple[str, NDArray[np.float16], NDArray[np.int32]]] = []
    for item in with_progress(load_items(dataset_dir, split), "segmenting", "image"):
        with torch.inference_mode():
            found = inferer(segmenter.prepare(read_image(item["image"])), segmenter.network)
        truth = read_label_map(item["instances"])
        maps.append((item["domain"], found[0].half().cpu().numpy(), truth))
    best = (-1.0, 0.0, 0.0)
    for threshold, marker in itertools.product(thresholds, marker_thresholds):
        rule = DistanceRule(threshold, marker)
        rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for domain, (foreground, distance), truth in maps:
            instances = distance_instances(foreground.astype(np.float32), distance.astype(np.float32), rule)
            scores = instance_metrics(truth, instances)
            rows[domain].append((scores.aji, scores.pq))
        means = {domain: np.nanmean(values, axis=0) for domain, values in rows.items()}
        both = float(np.mean(list(means.values())))
        best = max(best, (both, threshold, marker))
        parts = "  ".join(f"{domain} {aji:.4f} {pq:.4f}" for domain, (aji, pq) in means.items())
        sys.stdout.write(f"threshold {threshold:.2f} marker {marker:.2f}: {both:.4f}  {parts}\n")
    sys.stdout.write(
        f"best (mean {best[0]:.4f}): --threshold {best[1]} --distance_rule \"{{'marker_threshold': {best[2]}}}\"\n"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
