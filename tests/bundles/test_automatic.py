"""SAM's automatic mode, laid over the evaluation of every bundle of semantic segmentation."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from nucsam_monai.networks.sam import SAM
from tests.bundles.runs import IMAGES, REPOSITORY, TINY

BUNDLES = REPOSITORY / "bundles"
AUTOMATIC = BUNDLES / "sac" / "configs" / "automatic.json"
BASES = [name for name in ("unsam", "sac") if (BUNDLES / name / "configs" / "evaluate.json").exists()]


@pytest.mark.parametrize("base", BASES)
def test_the_automatic_mode_is_evaluated_without_training(
    base: str, dataset_dir: str, sam_weights: str, tmp_path: Path
) -> None:
    configs = BUNDLES / base / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / "train.json"), str(configs / "evaluate.json"), str(AUTOMATIC)],
        logging_file=False,
        workflow_type="train",
        **{
            **TINY,
            "image_size": 64,
            "sam_checkpoint": sam_weights,
            "dataset_dir": dataset_dir,
            "output_dir": str(tmp_path),
            "validate#inferer#points_per_side": 2,
            "validate#inferer#pred_iou_thresh": -10.0,
            "validate#inferer#stability_score_thresh": 0.0,
        },
    )
    workflow.initialize()
    network = workflow.parser.get_parsed_content("network_def")
    assert isinstance(network, SAM)
    workflow.run()
    workflow.finalize()
    images = sum(counts["test"] for counts in IMAGES.values())
    with (tmp_path / "per_image.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == images
    assert len(list((tmp_path / "overlays").iterdir())) == images
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["method"] == "sam_automatic"
    assert summary["options"]["points_per_side"] == 2
    output = workflow.evaluator.state.output[0]
    assert output["pred"].instances.shape == output["label_instances"].shape[1:]
    assert output["pred"].instances.dtype == np.int32
