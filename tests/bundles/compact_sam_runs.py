"""Runs of the compact SAM's bundle."""

from functools import partial

from tests.bundles.runs import TINY, BundleRuns

COMPACT_SAM = BundleRuns("compact_sam", {**TINY, "image_size": 64, "epochs": 2, "max_masks": 3})
CONFIGS = COMPACT_SAM.configs
run = COMPACT_SAM.train
bundle = partial(COMPACT_SAM.bundle, **COMPACT_SAM.tiny)
