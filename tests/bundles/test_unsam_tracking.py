"""What a training and an evaluation of the UN-SAM bundle leave in the tracking database."""

import shutil
import sys
from pathlib import Path

import pytest

from nucsam_monai.utils.errors import ImageReadError
from tests.bundles.conftest import Training
from tests.bundles.runs import IMAGES, raised_from
from tests.bundles.unsam_runs import bundle, evaluate, train
from tests.handlers.tracked_engines import Store

EXPERIMENT = "nucsam/unsam"


def test_a_training_is_one_finished_run_with_curves_by_epoch(training: Training) -> None:
    store = Store(training.store_uri)
    run = store.only_run(EXPERIMENT)
    assert run.info.status == "FINISHED"
    assert run.data.tags["workflow"] == "train"
    assert run.data.tags["dataset"] == "bright+dark"
    assert run.data.params["sam_variant"] == "micro"
    for metric in ("train_loss", "lr_group_0", "val_dice", "val_pq", "val_loss", "val_loss_dark"):
        assert set(store.curve(run, metric)) == {1, 2}
    assert store.curve(run, "val_dice")[2] == training.val_dice
    inputs = {(entry.dataset.name, tag.value) for entry in run.inputs.dataset_inputs for tag in entry.tags}
    assert {("bright", "training"), ("dark", "training")} <= inputs
    assert {"configs", "model.safetensors"} <= store.artifacts(run)
    assert "configs/train.json" in store.artifacts(run, "configs")


def test_two_evaluations_are_two_runs(
    training: Training, store: Store, store_uri: str, tmp_path: Path
) -> None:
    settings = {**training.settings, "checkpoint": str(training.weights), "tracking_uri": store_uri}
    results = {
        split: evaluate(**settings, splits=[split], output_dir=str(tmp_path / split)).evaluator.state.metrics
        for split in ("test", "validation")
    }
    runs = {run.data.tags["split"]: run for run in store.runs(EXPERIMENT)}
    assert set(runs) == {"test", "validation"}
    for split, run in runs.items():
        assert run.info.status == "FINISHED"
        assert run.data.tags["workflow"] == "evaluate"
        assert store.curve(run, "val_dice") == {1: results[split]["val_dice"]}
        assert {"per_image.csv", "summary.csv", "summary.json", "overlays"} <= store.artifacts(run)


@pytest.mark.parametrize("split", ["training", "validation"])
def test_an_image_that_turns_out_corrupt_fails_the_run(
    training: Training, store: Store, store_uri: str, tmp_path: Path, split: str
) -> None:
    data = shutil.copytree(str(training.settings["dataset_dir"]), tmp_path / "data")
    settings = {**training.settings, "dataset_dir": str(data), "tracking_uri": store_uri}
    settings |= {"train#dataset#cache_rate": 0.0, "output_dir": str(tmp_path / "output")}
    workflow = bundle(**settings)
    number = IMAGES["dark"][split] - 1
    image = data / "dark" / "images" / f"{split}_{number}.png"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(RuntimeError) as error:
        workflow.run()
    assert str(image) in (raised_from(error.value, ImageReadError) or "")
    assert store.only_run(EXPERIMENT).info.status == "FAILED"
    assert not (tmp_path / "output" / "model.safetensors").exists()


def test_without_mlflow_everything_runs(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    settings = {**training.settings, "tracking_uri": str(tmp_path / "mlflow.db")}
    settings["samples_per_epoch"] = 1
    train(**settings, output_dir=str(tmp_path / "train"))
    weights = str(tmp_path / "train" / "model.safetensors")
    evaluate(**settings, checkpoint=weights, output_dir=str(tmp_path / "evaluate"))
    assert (tmp_path / "evaluate" / "summary.json").is_file()
    assert not (tmp_path / "mlflow.db").exists()


def test_every_override_is_recorded(training: Training, store: Store, store_uri: str, tmp_path: Path) -> None:
    settings = {**training.settings, "samples_per_epoch": 1, "tracking_uri": store_uri}
    settings |= {"network_def#encoder#bypass": False, "lr": 0.002, "output_dir": str(tmp_path)}
    train(**settings)
    run = store.only_run(EXPERIMENT)
    params = run.data.params
    assert (params["network_def.encoder.bypass"], params["lr"]) == ("False", "0.002")
    assert (params["sam_variant"], params["domains"]) == ("micro", "[bright, dark]")
    assert not any(store_uri in value for value in params.values())
    assert {"configs", "configuration.json"} <= store.artifacts(run)
