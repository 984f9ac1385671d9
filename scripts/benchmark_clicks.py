"""Measure what a click on a nucleus, and a box around it, give.

Example:
    python scripts/benchmark_clicks.py promptnucseg --dataset_dir data --output output/clicks.json

Some nuclei of every image are asked for one by one: by a random pixel of each, by the pixel nearest to its centroid,
and by its box. Prints a Markdown table of the mean IoU of mask and truth, and of the share of masks with IoU above 0.5.
"""

import sys
from collections import defaultdict
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nucsam_monai
from nucsam_monai.apps.command_line import run_command
from nucsam_monai.data import load_items
from nucsam_monai.data.converters.progress import with_progress
from nucsam_monai.io import read_image, read_label_map, write_json
from nucsam_monai.utils.machine import processor_name


def prompts_of(nucleus: NDArray[np.bool_], generator: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Return the arguments of ``segment`` by the name of the prompt.

    Args:
        nucleus: ``(H, W)`` mask with at least one pixel.
        generator: chooses the random pixel.
    """
    places = np.argwhere(nucleus)[:, ::-1]
    central = places[np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))]
    box = [*places.min(axis=0), *(places.max(axis=0) + 1)]
    return {
        "click anywhere": {"points": [generator.choice(places)]},
        "click on the centre": {"points": [central]},
        "box": {"boxes": [box]},
    }


def main(
    bundle: str,
    dataset_dir: str,
    weights: str | None = None,
    split: str = "test",
    nuclei_per_image: int = 20,
    seed: int = 0,
    output: str | None = None,
) -> None:
    """Ask for nuclei of every image of a split.

    Args:
        bundle: name of a bundle that takes prompts.
        dataset_dir: a dataset folder, or a folder of several.
        weights: as for ``load``.
        split: whose images are measured.
        nuclei_per_image: drawn at random where there are more.
        seed: of nuclei and clicks.
        output: JSON file for the results.
    """
    segmenter, generator = nucsam_monai.load(bundle, weights), np.random.default_rng(seed)
    ious: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item in with_progress(load_items(dataset_dir, split), "measuring", "image"):
        pixels, truth = read_image(item["image"]), read_label_map(item["instances"])
        ids = np.unique(truth[truth > 0])
        for nucleus_id in generator.permutation(ids)[:nuclei_per_image]:
            nucleus = truth == nucleus_id
            for name, prompt in prompts_of(nucleus, generator).items():
                mask = segmenter.segment(pixels, **prompt).instances > 0
                ious[item["domain"]][name].append(float((mask & nucleus).sum() / (mask | nucleus).sum()))
    lines = ["| dataset | prompt | nuclei | mean IoU | IoU above 0.5 |", "|---|---|---|---|---|"]
    for domain, of_prompt in ious.items():
        for name, values in of_prompt.items():
            found = np.mean(np.array(values) > 0.5)
            lines.append(f"| {domain} | {name} | {len(values)} | {np.mean(values):.3f} | {found:.1%} |")
    sys.stdout.write("\n".join(lines) + "\n")
    if output is not None:
        facts: dict[str, Any] = {"bundle": bundle, "weights": weights, "split": split, "seed": seed}
        machine = {"processor": processor_name(), "torch": version("torch")}
        write_json(output, {**facts, **machine, "ious": {key: dict(value) for key, value in ious.items()}})


if __name__ == "__main__":
    sys.exit(run_command(main))
