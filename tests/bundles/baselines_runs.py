"""Runs of the bundle of baselines."""

from tests.bundles.runs import TINY, BundleRuns

BASELINES = BundleRuns(
    "baselines",
    {
        **{key: value for key, value in TINY.items() if key != "sam_variant"},
        "baseline": "unet",
        "baseline_size": "small",
    },
)
