"""Runs of the PromptNucSeg bundle."""

from pathlib import Path

import numpy as np
from monai.bundle import ConfigWorkflow

from nucsam_monai.data import DatasetWriter
from nucsam_monai.data.dataset import DatasetMetadata
from tests.bundles.runs import TINY, BundleRuns, draw

CLASS_NAMES = ("left", "right")

PROMPTNUCSEG = BundleRuns(
    "promptnucseg", {**TINY, "max_masks": 3, "overlap_px": 8, "point_radius_px": 4.0, "levels": 2}
)


def write_typed_dataset(root: Path) -> Path:
    """Write one dataset whose nuclei have the class of the image's half that they lie in; one image is empty."""
    rng = np.random.default_rng(1)
    metadata = DatasetMetadata(
        "typed", "typed", "synthetic", 20.0, 0.5, "CC0-1.0", "none", class_names=CLASS_NAMES
    )
    with DatasetWriter(root / "typed", metadata) as writer:
        for split, count in (("training", 3), ("validation", 2), ("test", 2)):
            for number in range(count):
                image, instances = draw(rng, 0 if (split, number) == ("training", 0) else 4)
                classes = {
                    nucleus: 1 - nucleus % 2 for nucleus in np.unique(instances[instances > 0]).tolist()
                }
                writer.add(split, f"{split}_{number}", image, instances, classes=classes, tissue="skin")
    return root


def joint_metrics(workflow: ConfigWorkflow) -> dict[str, float]:
    """Return what the validation of both networks together measured."""
    return dict(workflow.parser.get_parsed_content("joint::evaluator").state.metrics)
