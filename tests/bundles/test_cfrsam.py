"""The CFR-SAM bundle from training to evaluation and inference, in one process."""

import csv
import json
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import pytest
import tifffile
from PIL import Image

from nucsam_monai.networks.sam import read_header
from nucsam_monai.utils.errors import CheckpointError
from tests.bundles.cfrsam_runs import CFRSAM
from tests.bundles.conftest import TwoStageTraining
from tests.bundles.promptnucseg_runs import CLASS_NAMES, joint_metrics
from tests.bundles.runs import (
    HEIGHT,
    OF_THE_FOLDER,
    WIDTH,
    assert_same_tensors,
    draw,
    network_of,
    raised_from,
)
from tests.handlers.tracked_engines import Store

WEIGHTS = ("prompter.safetensors", "segmentor.safetensors")
STATES = ("prompter_state.safetensors", "segmentor_state.safetensors")
OUTPUTS = ("_instances.tif", ".geojson", "_nuclei.csv", "_overlay.png")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_writes_the_weights_of_both_stages(cfrsam_training: TwoStageTraining) -> None:
    folder = cfrsam_training.folder
    assert {path.name for path in folder.iterdir()} == {*WEIGHTS, *STATES}
    prompter, segmentor = (read_header(folder / name) for name in WEIGHTS)
    assert (prompter["method"], segmentor["method"]) == ("prompter", "cfrsam")
    assert json.loads(prompter["class_names"]) == list(CLASS_NAMES)
    assert "val_class_f1" in prompter
    assert "val_mpq" in segmentor


def test_each_stage_and_the_joint_validation_are_tracked_runs(cfrsam_training: TwoStageTraining) -> None:
    store = Store(cfrsam_training.store_uri)
    runs = {run.data.tags["stage"]: run for run in store.runs("nucsam/cfrsam")}
    assert set(runs) == {"prompter", "segmentor", "joint"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for stage, metrics in {
        "prompter": ("train_loss", "val_f1", "val_class_f1"),
        "segmentor": ("train_loss", "val_pq", "val_mpq", "val_hovernet_f1"),
    }.items():
        for metric in metrics:
            assert set(store.curve(runs[stage], metric)) == {1, 2}
    assert list(store.curve(runs["joint"], "val_pq").values()) == [cfrsam_training.metrics["val_pq"]]
    best = max(store.curve(runs["segmentor"], "val_mpq").values())
    assert cfrsam_training.metrics["val_mpq"] == best


def test_a_resumed_training_ends_with_the_same_weights(
    cfrsam_training: TwoStageTraining, tmp_path: Path
) -> None:
    settings = {**cfrsam_training.settings, "output_dir": str(tmp_path)}
    CFRSAM.train(**settings, run_id="prompter")
    CFRSAM.train(**settings, **{"train#trainer#max_epochs": 1}, run_id="segmentor")
    workflow = CFRSAM.train(**settings, resume=True)
    assert joint_metrics(workflow) == pytest.approx(cfrsam_training.metrics, rel=0, abs=0, nan_ok=True)
    for name in (*WEIGHTS, *STATES):
        assert_same_tensors(tmp_path / name, cfrsam_training.folder / name)


def test_the_second_stage_needs_the_first(cfrsam_training: TwoStageTraining, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        CFRSAM.train(**cfrsam_training.settings, output_dir=str(tmp_path), run_id="segmentor")
    assert "prompter.safetensors" in (raised_from(error.value, CheckpointError) or "")
    assert list(tmp_path.iterdir()) == []


def test_evaluation_repeats_the_joint_validation_and_writes_the_tables(
    cfrsam_training: TwoStageTraining, tmp_path: Path
) -> None:
    settings = {**cfrsam_training.settings, "checkpoint": str(cfrsam_training.folder)}
    workflow = CFRSAM.evaluate(**settings, output_dir=str(tmp_path), splits=["validation"])
    measured = workflow.evaluator.state.metrics
    assert measured == pytest.approx(cfrsam_training.metrics, rel=0, abs=0, nan_ok=True)
    assert {row["id"] for row in rows_of(tmp_path / "per_image.csv")} == {"validation_0", "validation_1"}
    assert [row["class"] for row in rows_of(tmp_path / "per_class.csv")] == list(CLASS_NAMES)
    (row,) = rows_of(tmp_path / "summary.csv")
    assert {"aji", "dq", "sq", "pq", "dice", "mpq", "hovernet_f1", "greedy_f1"} <= set(row)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"bpq_tissue", "mpq_tissue"} <= set(summary["tissue_means"])
    assert [header["method"] for header in summary["weights"].values()] == ["prompter", "cfrsam"]
    assert len(list((tmp_path / "overlays").iterdir())) == 2


def test_evaluation_refuses_weights_of_another_network(
    cfrsam_training: TwoStageTraining, tmp_path: Path
) -> None:
    settings = {**cfrsam_training.settings, "checkpoint": str(cfrsam_training.folder), "mala_rank": 8}
    with pytest.raises(RuntimeError) as error:
        CFRSAM.evaluate(**settings, output_dir=str(tmp_path))
    assert "its options is" in (raised_from(error.value, CheckpointError) or "")
    assert list(tmp_path.iterdir()) == []


def test_inference_writes_four_files_per_image(cfrsam_training: TwoStageTraining, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, seed in (("one.png", 1), ("two.png", 2)):
        Image.fromarray(draw(np.random.default_rng(seed), 4)[0]).save(tmp_path / "images" / name)
    (tmp_path / "points.json").write_text(json.dumps({"two.png": [[16, 18], [48.5, 18]]}))
    names = ("device", "sam_variant", "image_size", "precision", "overlap_px", "point_radius_px", "levels")
    settings: dict[str, Any] = {key: cfrsam_training.settings[key] for key in (*names, "mala_rank")}
    workflow = CFRSAM.bundle(
        base="inference",
        **settings,
        checkpoint=str(cfrsam_training.folder),
        input=str(tmp_path / "images"),
        output_dir=str(tmp_path / "out"),
        points=str(tmp_path / "points.json"),
        nms_threshold=1.0,
    )
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {stem + end for stem in ("one", "two") for end in OUTPUTS} | OF_THE_FOLDER
    assert tifffile.imread(tmp_path / "out" / "one_instances.tif").shape == (HEIGHT, WIDTH)
    assert len(workflow.evaluator.state.output[0]["pred"].nucleus_of_prompt) == 2


def test_boxes_are_trained_and_evaluated_in_fewer_epochs_than_a_validation_waits_for(
    cfrsam_training: TwoStageTraining, tmp_path: Path
) -> None:
    settings = {**cfrsam_training.settings, "epochs": 1, "val_interval": 4, "prompt": "box"}
    workflow = CFRSAM.train(**settings, output_dir=str(tmp_path / "train"))
    assert set(WEIGHTS) <= {path.name for path in (tmp_path / "train").iterdir()}
    assert workflow.trainer.state.batch["points"].shape[1:] == (2, 2)
    assert network_of(workflow).prompter.sizes is not None
    settings |= {"checkpoint": str(tmp_path / "train"), "oracle_prompts": True}
    CFRSAM.evaluate(**settings, output_dir=str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["prompt"] == "box"


def test_the_overlay_for_several_processes_trains_in_one(
    cfrsam_training: TwoStageTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    # Ignite remembers that there was a process group, beyond its end.
    monkeypatch.setattr(idist.utils, "_model", idist.utils._model)
    settings = {key: value for key, value in cfrsam_training.settings.items() if key != "hide_progress"}
    workflow = CFRSAM.train("multi_gpu_train", **settings, output_dir=str(tmp_path))
    assert type(workflow.trainer.network).__name__ == "DistributedDataParallel"
    assert joint_metrics(workflow) == pytest.approx(cfrsam_training.metrics, rel=1e-4, abs=1e-6, nan_ok=True)
