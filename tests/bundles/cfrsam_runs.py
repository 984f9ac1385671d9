"""Runs of the CFR-SAM bundle."""

from dataclasses import replace

from tests.bundles.runs import TINY, BundleRuns
from tests.networks.conftest import MICRO

WIDE = replace(MICRO, name="micro_wide", window=4)
"""Windows of four tokens: MALA's largest kernel mirrors three."""

CFRSAM = BundleRuns(
    "cfrsam",
    {
        **TINY,
        "sam_variant": WIDE.name,
        "image_size": 64,
        "prompter_crop_px": 64,
        "max_nuclei": 3,
        "mala_rank": 4,
        "overlap_px": 8,
        "point_radius_px": 4.0,
        "levels": 2,
        "train_prompts": "mixed",
    },
)
