"""Runs of bundle configurations, and MONAI's own MLflow handler beside ours."""

import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow
from monai.handlers import (
    MLFlowHandler,
    ValidationHandler,
    from_engine,
)

from nucsam_monai.handlers import MLflowTracker, TrackedRun
from tests.handlers.tracked_engines import EXPERIMENT, Store, make_evaluator, make_trainer


def stock_handler(uri: str, experiment: str, **options: Any) -> MLFlowHandler:
    return MLFlowHandler(
        tracking_uri=uri,
        experiment_name=experiment,
        output_transform=from_engine(["loss"], first=True),
        tag_name="train_loss",
        **options,
    )


@pytest.mark.parametrize("stock_first", [True, False])
def test_the_stock_handler_of_the_same_experiment_writes_every_point_once(
    store: Store, store_uri: str, tracked: TrackedRun, stock_first: bool
) -> None:
    ours = MLflowTracker(tracked, owner=True)
    stock = stock_handler(store_uri, EXPERIMENT, close_on_complete=True)
    validator = make_evaluator(
        MLflowTracker(tracked), stock_handler(store_uri, EXPERIMENT, iteration_log=False)
    )
    handlers = [stock, ours] if stock_first else [ours, stock]
    make_trainer(*handlers, ValidationHandler(1, validator)).run()
    runs = store.runs()
    assert len(runs) == (2 if stock_first else 1)
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        for metric in run.data.metrics:
            store.curve(run, metric)
    tracked_run = store.client.get_run(tracked.run_id)
    assert tracked_run.data.tags["bundle"] == "demo"
    assert set(store.curve(tracked_run, "val_mse")) == {1, 2}


def test_the_stock_handler_of_another_experiment_is_left_alone(
    store: Store, store_uri: str, tracked: TrackedRun
) -> None:
    stock = stock_handler(store_uri, "monai_experiment", close_on_complete=True)
    make_trainer(MLflowTracker(tracked, owner=True), stock).run()
    assert set(store.curve(store.only_run(), "train_loss")) == {1, 2}
    assert len(store.curve(store.only_run("monai_experiment"), "train_loss")) == 6


def test_repeated_evaluations_next_to_the_stock_handler_stay_apart(
    store: Store, store_uri: str, tracked: TrackedRun
) -> None:
    stock = stock_handler(store_uri, EXPERIMENT, iteration_log=False)
    evaluator = make_evaluator(MLflowTracker(tracked), stock)
    evaluator.run()
    evaluator.run()
    runs = store.runs()
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert [set(store.curve(run, "val_mse")) for run in runs] == [{1}, {1}]


def bundle_config(store_uri: str, output_dir: Path) -> dict[str, Any]:
    return {
        "bundle_root": str(output_dir),
        "output_dir": f"$'{output_dir}'",
        "tracking_uri": store_uri,
        "experiment_name": EXPERIMENT,
        "epochs": 2,
        "device": "$torch.device('cpu')",
        "imports": ["$import torch", "$import monai", "$from tests.handlers import tracked_engines"],
        "data": "$tracked_engines.batches()",
        "network": {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 1},
        "tracked_run": {
            "_target_": "nucsam_monai.handlers.TrackedRun",
            "experiment": "@experiment_name",
            "tracking_uri": "@tracking_uri",
            "workflow": "train",
            "tags": {"bundle": "demo", "bundle_version": "@_meta_::version"},
            "params": {"epochs": "@epochs", "network": {"name": "linear"}},
        },
        "validate": {
            "handlers": [{"_target_": "nucsam_monai.handlers.MLflowTracker", "run": "@tracked_run"}],
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@data",
                "network": "@network",
                "val_handlers": "@validate#handlers",
            },
        },
        "train": {
            "handlers": [
                {
                    "_target_": "nucsam_monai.handlers.MLflowTracker",
                    "run": "@tracked_run",
                    "owner": True,
                    "artifacts": [str(output_dir / "metadata.json")],
                },
                {"_target_": "ValidationHandler", "interval": 1, "validator": "@validate#evaluator"},
            ],
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": "@epochs",
                "device": "@device",
                "train_data_loader": "@data",
                "network": "@network",
                "loss_function": "$torch.nn.functional.mse_loss",
                "optimizer": "$torch.optim.SGD(@network.parameters(), 0.1)",
                "train_handlers": "@train#handlers",
            },
        },
        "run": ["$@train#trainer.run()"],
    }


def run_bundle(folder: Path, *configs: dict[str, Any], tracking: str | None = None) -> None:
    files = []
    for number, config in enumerate(configs):
        files.append(str(folder / f"config{number}.json"))
        Path(files[-1]).write_text(json.dumps(config))
    (folder / "metadata.json").write_text(json.dumps({"version": "1.2.3"}))
    workflow = ConfigWorkflow(
        config_file=files,
        meta_file=str(folder / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        tracking=tracking,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def test_a_bundle_trains_and_evaluates_in_two_runs(store: Store, store_uri: str, tmp_path: Path) -> None:
    train = bundle_config(store_uri, tmp_path)
    evaluate = {"tracked_run#workflow": "evaluate", "run": ["$@validate#evaluator.run()"]}
    run_bundle(tmp_path, train)
    run_bundle(tmp_path, train, evaluate)
    evaluation, training = store.runs()
    assert [run.data.tags["workflow"] for run in (training, evaluation)] == ["train", "evaluate"]
    assert [run.info.status for run in (training, evaluation)] == ["FINISHED", "FINISHED"]
    assert training.data.tags["bundle_version"] == "1.2.3"
    assert training.data.params == {"epochs": "2", "network.name": "linear"}
    assert store.artifacts(training) == {"metadata.json"}


def test_a_bundle_that_fails_while_it_is_parsed_leaves_no_run(
    store: Store, store_uri: str, tmp_path: Path
) -> None:
    train = bundle_config(store_uri, tmp_path)
    train["train"]["trainer"]["optimizer"] = "$torch.optim.NoSuchOptimizer(@network.parameters())"
    with pytest.raises(RuntimeError):
        run_bundle(tmp_path, train)
    assert store.runs() == []


def test_tracking_mlflow_on_the_command_line_joins_our_run(
    store: Store, store_uri: str, tmp_path: Path
) -> None:
    run_bundle(tmp_path, bundle_config(store_uri, tmp_path), tracking="mlflow")
    run = store.only_run()
    assert run.info.status == "FINISHED"
    assert run.data.params["network.name"] == "linear"
    assert len(store.curve(run, "train_loss")) == 6  # MONAI's handler writes iterations
    assert any(name.startswith("config_") for name in store.artifacts(run))
