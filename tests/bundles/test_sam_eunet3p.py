"""The bundle of SAM-guided eU-Net3+ from training to evaluation and inference, in one process."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from nucsam_monai.networks.sam import read_header
from nucsam_monai.utils.errors import CheckpointError
from tests.bundles.conftest import Training
from tests.bundles.eunet3p_runs import EUNET3P
from tests.bundles.runs import (
    HEIGHT,
    OF_THE_FOLDER,
    WIDTH,
    assert_same_tensors,
    draw,
    network_of,
    raised_from,
    tensors,
)
from tests.handlers.tracked_engines import Store

OUTPUTS = ("_instances.tif", ".geojson", "_nuclei.csv", "_overlay.png")


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def trained(training: Training, output: Path, **settings: Any) -> dict[str, Any]:
    """Settings that use the trained weights."""
    return {
        **training.settings,
        "checkpoint": str(training.weights),
        "output_dir": str(output),
        **settings,
    }


def test_training_is_one_tracked_run_whose_weights_name_what_they_belong_to(
    eunet3p_training: Training,
) -> None:
    header = read_header(eunet3p_training.weights)
    assert (header["method"], header["sam_variant"]) == ("eunet3p", "micro")
    assert json.loads(header["options"])["fusion"] == "xgfb"
    saved = tensors(eunet3p_training.weights)
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert {name.split(".")[0] for name in saved} == {"unet", "guidance"}
    store = Store(eunet3p_training.store_uri)
    run = store.only_run("nucsam/sam_eunet3p")
    assert run.info.status == "FINISHED"
    assert run.data.params["fusion"] == "xgfb"
    assert store.curve(run, "val_dice")[2] == eunet3p_training.val_dice
    for metric in ("train_loss", "lr_group_0", "val_pq", "val_loss", "val_weighted_iou"):
        assert set(store.curve(run, metric)) == {1, 2}


def test_evaluation_repeats_the_numbers_of_the_training(eunet3p_training: Training, tmp_path: Path) -> None:
    workflow = EUNET3P.evaluate(**trained(eunet3p_training, tmp_path), splits=["validation"])
    evaluated = workflow.evaluator.state.metrics["val_dice"]
    assert repr(evaluated) == read_header(eunet3p_training.weights)["val_dice"]
    assert evaluated >= eunet3p_training.val_dice


def test_evaluation_writes_tables_with_foreground_and_weighted_metrics(
    eunet3p_training: Training, tmp_path: Path
) -> None:
    EUNET3P.evaluate(**trained(eunet3p_training, tmp_path))
    with (tmp_path / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {(row["domain"], row["id"]) for row in rows}
    assert names == {("bright", "test_0"), ("dark", "test_0"), ("dark", "test_1")}
    assert {"dice", "iou", "weighted_f1", "weighted_iou", "aji", "pq"} <= set(rows[0])
    assert {path.stem for path in (tmp_path / "overlays").iterdir()} == {"_".join(name) for name in names}
    assert summary(tmp_path)["fusion"] == "xgfb"


def test_evaluation_refuses_weights_trained_with_sam_where_there_is_none(
    eunet3p_training: Training, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError) as error:
        EUNET3P.evaluate(**trained(eunet3p_training, tmp_path, fusion="none"))
    assert "its sam_variant is 'micro'" in (raised_from(error.value, CheckpointError) or "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fit", ["tile", "resize"])
def test_inference_writes_four_files_per_image_larger_than_the_working_size(
    eunet3p_training: Training, tmp_path: Path, fit: str
) -> None:
    (tmp_path / "images").mkdir()
    for name, seed in (("one.png", 1), ("two.png", 2)):
        Image.fromarray(draw(np.random.default_rng(seed), 4)[0]).save(tmp_path / "images" / name)
    names = ("device", "sam_variant", "sam_checkpoint", "image_size", "filters", "precision")
    workflow = EUNET3P.bundle(
        base="inference",
        **{key: eunet3p_training.settings[key] for key in names},
        checkpoint=str(eunet3p_training.weights),
        input=str(tmp_path / "images"),
        output_dir=str(tmp_path / "out"),
        instances="watershed",
        fit=fit,
    )
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    assert network_of(workflow).embedding_cache is None
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        stem + end for stem in ("one", "two") for end in OUTPUTS
    } | OF_THE_FOLDER
    assert tifffile.imread(tmp_path / "out" / "one_instances.tif").shape == (HEIGHT, WIDTH)


def test_a_resumed_training_ends_with_the_same_weights(eunet3p_training: Training, tmp_path: Path) -> None:
    settings = {**eunet3p_training.settings, "epochs": 3, "samples_per_epoch": 4}
    for name, steps in (("whole", [3]), ("parts", [1, 3])):
        for step in steps:
            EUNET3P.train(
                **{**settings, "train#trainer#max_epochs": step},
                output_dir=str(tmp_path / name),
                resume=step != steps[0],
            )
    for name in ("model.safetensors", "training_state.safetensors"):
        assert_same_tensors(tmp_path / "parts" / name, tmp_path / "whole" / name)


def test_without_sam_weights_it_trains_without_guidance_and_says_so(
    dataset_dir: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**EUNET3P.tiny, "dataset_dir": dataset_dir, "output_dir": str(tmp_path / "train")}
    with caplog.at_level(logging.INFO):
        workflow = EUNET3P.train(**settings, embedding_cache=str(tmp_path / "embeddings"))
    assert network_of(workflow).image_encoder is None
    said = [message for message in caplog.messages if "without SAM's guidance" in message]
    assert len(said) == 1
    assert not any("embedding cache" in message for message in caplog.messages)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
    weights = tmp_path / "train" / "model.safetensors"
    assert read_header(weights)["sam_variant"] == "none"
    EUNET3P.evaluate(**{**settings, "output_dir": str(tmp_path / "evaluated")}, checkpoint=str(weights))
    assert summary(tmp_path / "evaluated")["fusion"] == "none"


def test_every_property_that_monai_asks_for_is_there(eunet3p_training: Training, tmp_path: Path) -> None:
    settings = {**eunet3p_training.settings, "output_dir": str(tmp_path)}
    assert EUNET3P.bundle(**settings).check_properties() == []
    evaluation = EUNET3P.bundle("evaluate", **settings, checkpoint=str(eunet3p_training.weights))
    assert evaluation.check_properties() == []


def test_the_stages_and_nodes_of_the_unet_are_what_is_compiled(
    eunet3p_training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(
        "nucsam_monai.engines.bundle.compile_modules", lambda modules, _: compiled.extend(modules)
    )
    workflow = EUNET3P.bundle(**trained(eunet3p_training, tmp_path, compile=True))
    network = network_of(workflow)
    assert compiled == [*network.unet.stages, *network.unet.nodes]
