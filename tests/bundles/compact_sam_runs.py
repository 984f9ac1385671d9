"""Runs of the compact SAM's bundle on data and networks so small that a step takes milliseconds."""

from typing import Any

from monai.bundle import ConfigWorkflow

from tests.bundles.unsam_runs import REPOSITORY

CONFIGS = REPOSITORY / "bundles" / "compact_sam" / "configs"

TINY = {
    "device": "$torch.device('cpu')",
    "sam_variant": "micro",
    "image_size": 64,
    "precision": "fp32",
    "hide_progress": True,
    "epochs": 2,
    "val_interval": 1,
    "batch_size": 2,
    "samples_per_epoch": None,
    "max_masks": 3,
    "tracking_uri": "off",
}


def bundle(*overlays: str, **settings: Any) -> ConfigWorkflow:
    """Parse and initialise the bundle's configurations by name, as ``monai.bundle run`` does."""
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / f"{name}.json") for name in ("train", *overlays)],
        logging_file=False,
        workflow_type="train",
        **{**TINY, **settings},
    )
    workflow.initialize()
    return workflow


def run(*overlays: str, **settings: Any) -> ConfigWorkflow:
    workflow = bundle(*overlays, **settings)
    workflow.run()
    workflow.finalize()
    return workflow
