"""What an experiment leaves in MLflow."""

from pathlib import Path

import pytest
from experiments import run_experiment
from experiments.steps import expand, folder_of
from experiments.tracking import MLFLOW_EXPERIMENT

from nucsam_monai.handlers.tracking_store import connect, experiment_id
from tests.handlers.tracked_engines import Store
from tests.scripts.experiments.stub import StubCommands, experiment_of, places_of


def test_one_parent_and_a_child_for_each_pair_however_often_it_is_resumed(
    tmp_path: Path, dataset_dir: str, store_uri: str
) -> None:
    experiment, places = experiment_of(tmp_path), places_of(tmp_path, dataset_dir, store_uri)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, places, run=StubCommands(killed_at=6))
    store = Store(store_uri)
    assert sorted(run.info.status for run in store.runs(MLFLOW_EXPERIMENT)) == ["FINISHED", "KILLED"]
    for _ in range(2):
        run_experiment(experiment, places, run=StubCommands())
    runs = store.runs(MLFLOW_EXPERIMENT)
    (parent,) = [run for run in runs if run.data.tags["workflow"] == "benchmark"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == 5
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.info.run_name for run in children} == {
        f"{name} on {data}, seed 0" for name in "AB" for data in ("bright", "dark")
    }
    assert parent.data.metrics["dice/dark/A"] == pytest.approx(0.05)
    assert "report" in store.artifacts(parent)

    (child,) = [run for run in children if run.info.run_name == "A on dark, seed 0"]
    tags = child.data.tags
    assert (tags["method"], tags["bundle"], tags["dataset"], tags["split"]) == ("A", "unsam", "dark", "test")
    assert (tags["protocol"], tags["seed"], tags["trained_on"]) == ("in_domain", "0", "dark")
    assert len(tags["weights_sha256.model"]) == 64
    # An interval over a single image is none.
    measured = {frozenset(name for name in run.data.metrics if "_ci_" not in name) for run in children}
    assert len(measured) == 1
    assert "dice_ci_low" in child.data.metrics
    assert child.data.metrics["dice"] == pytest.approx(0.05)
    inputs = {(entry.dataset.name, tag.value) for entry in child.inputs.dataset_inputs for tag in entry.tags}
    assert {("dark", "evaluation"), ("dark", "training")} <= inputs
    assert {"per_image.csv", "summary.json", "settings.json"} <= store.artifacts(child)

    for bundle in ("unsam", "baselines"):
        version = store.client.get_model_version_by_alias(f"nucsam-{bundle}", "toy-small")
        assert version.run_id in {run.info.run_id for run in children}
        assert len(store.client.search_model_versions(f"name='nucsam-{bundle}'")) == 1
        registered = store.client.get_run(version.run_id)
        assert {"bundle/configs", "bundle/models", "bundle/settings.json"} <= store.artifacts(
            registered, "bundle"
        )


def test_the_run_of_a_training_that_was_killed_ends_with_the_training(
    tmp_path: Path, dataset_dir: str, store_uri: str
) -> None:
    experiment, places = experiment_of(tmp_path), places_of(tmp_path, dataset_dir, store_uri)
    tags = {"workflow": "train", "training": folder_of(expand(experiment).trainings[0], places).name}
    client = connect(store_uri)
    left_open = client.create_run(experiment_id(client, MLFLOW_EXPERIMENT, store_uri), tags=tags)
    run_experiment(experiment, places, run=StubCommands())
    assert client.get_run(left_open.info.run_id).info.status == "KILLED"
