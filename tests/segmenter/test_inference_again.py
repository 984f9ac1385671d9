"""Inference with every bundle on a folder of which an image is damaged, twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow

from nucsam_monai.engines.results_folder import SUMMARY_NAME
from nucsam_monai.utils.errors import ConfigurationError, FailedImagesError
from nucsam_monai.utils.exit import own_error
from tests.bundles.runs import BUNDLES
from tests.tiny_bundles import SEGMENTING, Weights


def infer(weights: Weights, images: Path, output: Path, **options: Any) -> None:
    workflow = ConfigWorkflow(
        config_file=str(BUNDLES / weights.bundle / "configs" / "inference.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(BUNDLES / weights.bundle),
        checkpoint=str(weights.path),
        input=str(images),
        output_dir=str(output),
        device="$torch.device('cpu')",
        imports=["$import torch", "$import monai", "$import nucsam_monai", "$import nucsam_monai.handlers"],
        **{**weights.settings, **options},
    )
    workflow.initialize()
    workflow.run()


@pytest.mark.parametrize("bundle", SEGMENTING)
def test_finished_images_are_skipped_and_failed_ones_named(
    bundle: str, weights: dict[str, Weights], images: Path, tmp_path: Path
) -> None:
    source, output = tmp_path / "images", tmp_path / "out"
    shutil.copytree(images, source)
    (source / "damaged.png").write_bytes((source / "image 0.png").read_bytes()[:200])
    changed: dict[str, float] = {}
    for segmented, finished_before in ((2, 0), (0, 2)):
        with pytest.raises(RuntimeError) as failed:
            infer(weights[bundle], source, output)
        error = own_error(failed.value)
        assert isinstance(error, FailedImagesError)
        assert "damaged.png" in str(error)
        summary = json.loads((output / SUMMARY_NAME).read_text())
        assert (summary["segmented"], summary["finished_before"]) == (segmented, finished_before)
        modified = {path.name: path.stat().st_mtime for path in output.glob("image*")}
        assert len(modified) == 8
        assert changed in ({}, modified)
        changed = modified
    with pytest.raises(RuntimeError) as refused:
        infer(weights[bundle], source, output, precision="bf16")
    assert isinstance(own_error(refused.value), ConfigurationError)
    assert "another precision (was fp32, is bf16)" in str(own_error(refused.value))
