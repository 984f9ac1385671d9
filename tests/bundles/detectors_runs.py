"""Runs of the bundle of detectors."""

from tests.bundles.runs import TINY, BundleRuns

DETECTORS = BundleRuns(
    "detectors",
    {
        **{key: value for key, value in TINY.items() if key not in ("sam_variant", "precision")},
        "encoder": "micro",
        "rois_per_image": 8,
        "image_size": 64,
        "overlap_px": 16,
        "lr": 0.001,
        "warmup_epochs": 0,
    },
)
