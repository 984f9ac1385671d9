"""Runs written by real engines: trainers, validators, evaluators, crashes, and MONAI's own handler beside."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import (
    LrScheduleHandler,
    MeanSquaredError,
    MetricsSaver,
    MLFlowHandler,
    StatsHandler,
    ValidationHandler,
    from_engine,
)

from nucsam_monai.handlers import MLflowTracker, TrackedRun, mlflow_run
from nucsam_monai.handlers.mlflow_tracker import losses_of

EXPERIMENT = "nucsam/demo"


class Store:
    """What a test asks a tracking database."""

    def __init__(self, uri: str) -> None:
        self.client = mlflow.MlflowClient(uri)

    def runs(self, experiment: str = EXPERIMENT) -> list[Any]:
        found = self.client.get_experiment_by_name(experiment)
        return [] if found is None else list(self.client.search_runs([found.experiment_id]))

    def only_run(self, experiment: str = EXPERIMENT) -> Any:
        (run,) = self.runs(experiment)
        return run

    def curve(self, run: Any, metric: str) -> dict[int, float]:
        points = self.client.get_metric_history(run.info.run_id, metric)
        assert len({point.step for point in points}) == len(points), f"{metric}: a step was written twice"
        return {point.step: point.value for point in points}

    def artifacts(self, run: Any, folder: str | None = None) -> set[str]:
        return {file.path for file in self.client.list_artifacts(run.info.run_id, folder)}


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


@pytest.fixture
def tracked(store_uri: str) -> TrackedRun:
    return TrackedRun(
        EXPERIMENT,
        store_uri,
        tags={"bundle": "demo", "dataset": "toy", "protocol": None, "seed": 7},
        params={"optimizer": {"lr": 0.1}, "epochs": 2},
    )


def batches(count: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"image": torch.rand(2, 4, generator=generator), "label": torch.rand(2, 1, generator=generator)}
        for _ in range(count)
    ]


def make_evaluator(*handlers: Any, network: torch.nn.Module | None = None) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches(2),
        network=network or torch.nn.Linear(4, 1),
        key_val_metric={"val_mse": MeanSquaredError(output_transform=from_engine(["pred", "label"]))},
        val_handlers=list(handlers),
    )


def make_trainer(*handlers: Any, epochs: int = 2, loss: Any = None, **options: Any) -> SupervisedTrainer:
    network = torch.nn.Linear(4, 1)
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=batches(),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=loss or torch.nn.MSELoss(),
        train_handlers=list(handlers),
        **options,
    )


class Breaking:
    """A loss that raises at its n-th call."""

    def __init__(self, error: BaseException, at: int = 4) -> None:
        self.error, self.calls_left = error, at

    def __call__(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.calls_left -= 1
        if self.calls_left == 0:
            raise self.error
        return torch.nn.functional.mse_loss(prediction, target)


def test_a_training_is_one_finished_run_with_its_curves(
    store: Store, tracked: TrackedRun, tmp_path: Path
) -> None:
    config = tmp_path / "train.json"
    config.write_text("{}")
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "one.png").write_bytes(b"png")
    tracker = MLflowTracker(
        tracked, owner=True, artifacts=[config, tmp_path / "overlays", tmp_path / "never written"]
    )
    validator = make_evaluator(MLflowTracker(tracked, artifacts=[tmp_path / "tables"]))
    # MetricsSaver writes when the validation completes, ValidationHandler runs before our handler
    MetricsSaver(save_dir=tmp_path / "tables", metrics="*").attach(validator)
    trainer = make_trainer(ValidationHandler(1, validator), tracker)
    losses: dict[int, list[float]] = {}
    validated: dict[int, float] = {}
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: losses.setdefault(engine.state.epoch, []).append(engine.state.output[0]["loss"]),
    )
    validator.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda engine: validated.update({trainer.state.epoch: engine.state.metrics["val_mse"]}),
    )
    LrScheduleHandler(torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1, gamma=0.5), False).attach(trainer)
    trainer.run()

    run = store.only_run()
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("demo-toy-")
    assert run.data.params == {"optimizer.lr": "0.1", "epochs": "2"}
    tags = run.data.tags
    assert {"workflow": "train", "bundle": "demo", "seed": "7", "device": "cpu"}.items() <= tags.items()
    assert "protocol" not in tags
    assert tags["torch_version"] == torch.__version__
    assert tags["mlflow_version"] == mlflow.__version__
    expected = {epoch: pytest.approx(sum(values) / 3) for epoch, values in losses.items()}
    assert store.curve(run, "train_loss") == expected
    assert store.curve(run, "val_mse") == {epoch: pytest.approx(value) for epoch, value in validated.items()}
    assert set(validated) == {1, 2}
    assert store.curve(run, "lr_group_0") == {1: pytest.approx(0.1), 2: pytest.approx(0.05)}
    assert store.artifacts(run) == {"train.json", "overlays", "tables"}
    assert store.artifacts(run, "overlays") == {"overlays/one.png"}
    assert "tables/metrics.csv" in store.artifacts(run, "tables")


def test_artifacts_lie_beside_the_database(store: Store, tracked: TrackedRun, tmp_path: Path) -> None:
    with tracked:
        (tmp_path / "a.txt").write_text("a")
        tracked.log_artifacts([tmp_path / "a.txt"])
    folder = tmp_path / "tracking store" / "mlruns" / "nucsam" / "demo"
    assert (folder / store.only_run().info.run_id / "artifacts" / "a.txt").read_text() == "a"


@pytest.mark.parametrize("tracker_first", [True, False])
@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_crash_in_the_loop_ends_the_run(
    store: Store, tracked: TrackedRun, error: BaseException, status: str, tracker_first: bool
) -> None:
    stats = StatsHandler(output_transform=from_engine(["loss"], first=True))
    handlers = [MLflowTracker(tracked, owner=True), stats]
    trainer = make_trainer(*handlers if tracker_first else handlers[::-1], loss=Breaking(error))
    with pytest.raises(type(error)):
        trainer.run()
    run = store.only_run()
    assert run.info.status == status
    assert run.data.tags["error"].startswith(type(error).__name__)
    assert set(store.curve(run, "train_loss")) == {1}


def test_a_crash_in_the_validator_fails_the_one_run(store: Store, tracked: TrackedRun) -> None:
    class BrokenNetwork(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no validation today")

    validator = make_evaluator(MLflowTracker(tracked), network=BrokenNetwork())
    trainer = make_trainer(MLflowTracker(tracked, owner=True), ValidationHandler(1, validator))
    with pytest.raises(RuntimeError, match="no validation"):
        trainer.run()
    assert store.only_run().info.status == "FAILED"


def test_building_everything_writes_nothing(store: Store, tracked: TrackedRun) -> None:
    make_trainer(MLflowTracker(tracked, owner=True))
    assert store.runs() == []
    assert store.client.get_experiment_by_name(EXPERIMENT) is None


def test_two_evaluations_are_two_runs(store: Store, store_uri: str, tracked: TrackedRun) -> None:
    crashed = store.client.create_run(store.client.create_experiment(EXPERIMENT)).info.run_id
    evaluator = make_evaluator(MLflowTracker(tracked))
    evaluator.run()
    evaluator.run()
    make_evaluator(MLflowTracker(TrackedRun(EXPERIMENT, store_uri, workflow="evaluate"))).run()
    statuses = {run.info.run_id: run.info.status for run in store.runs()}
    assert statuses.pop(crashed) == "RUNNING"
    assert list(statuses.values()) == ["FINISHED"] * 3
    assert {run.data.tags.get("workflow") for run in store.runs()} == {"train", "evaluate", None}
    for identifier in statuses:
        assert set(store.curve(store.client.get_run(identifier), "val_mse")) == {1}


def test_a_validation_before_the_first_epoch_does_not_end_the_training(
    store: Store, tracked: TrackedRun
) -> None:
    validator = make_evaluator(MLflowTracker(tracked))
    validate_first = ValidationHandler(1, validator, exec_at_start=True)
    make_trainer(validate_first, MLflowTracker(tracked, owner=True)).run()
    run = store.only_run()
    assert run.info.status == "FINISHED"
    assert set(store.curve(run, "train_loss")) == {1, 2}


def test_an_evaluation_after_the_training_is_a_run_of_its_own(store: Store, tracked: TrackedRun) -> None:
    validator = make_evaluator(MLflowTracker(tracked))
    make_trainer(MLflowTracker(tracked, owner=True), ValidationHandler(1, validator)).run()
    validator.run()
    assert [run.info.status for run in store.runs()] == ["FINISHED", "FINISHED"]


@pytest.mark.parametrize("parts_key", ["loss", "losses"])
def test_named_losses_without_decollation(parts_key: str) -> None:
    output = {"pred": torch.zeros(2), parts_key: {"dice": torch.tensor(0.5), "focal": 2.0}}
    assert {name: float(value) for name, value in losses_of(output).items()} == {
        "train_loss_dice": 0.5,
        "train_loss_focal": 2.0,
    }


def test_named_losses_of_a_custom_update_become_curves(store: Store, tracked: TrackedRun) -> None:
    def update(engine: SupervisedTrainer, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        prediction = engine.network(batch["image"])
        return {"pred": prediction, "loss": prediction.mean(), "loss_dice": float(engine.state.iteration)}

    make_trainer(MLflowTracker(tracked, owner=True), iteration_update=update).run()
    run = store.only_run()
    assert store.curve(run, "train_loss_dice") == {1: 2.0, 2: 5.0}
    assert set(store.curve(run, "train_loss")) == {1, 2}


@pytest.mark.parametrize("output", [None, [], 3.0, [torch.zeros(2)], {"loss": "text"}, [{"losses": "a"}]])
def test_outputs_without_losses(output: Any) -> None:
    assert losses_of(output) == {}


def test_children_are_nested_under_a_benchmark(store: Store, store_uri: str) -> None:
    with TrackedRun(EXPERIMENT, store_uri, workflow="benchmark") as benchmark:
        child = TrackedRun(EXPERIMENT, store_uri, workflow="evaluate", parent_run_id=benchmark.run_id)
        make_evaluator(MLflowTracker(child, owner=True)).run()
        benchmark.log_metrics({"pq": {"toy": 0.5}, "name": "text", "curve": [1, 2]})
    parent = store.client.get_run(benchmark.run_id)
    assert store.client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.metrics == {"pq/toy": 0.5}
    assert {run.info.status for run in store.runs()} == {"FINISHED"}


def test_a_failing_benchmark_is_a_failed_run(store: Store, tracked: TrackedRun) -> None:
    with pytest.raises(ValueError, match="no data"), tracked:
        raise ValueError("no data")
    assert store.only_run().info.status == "FAILED"


@pytest.mark.parametrize("off", [None, "", "off"])
def test_tracking_can_be_off(off: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tracked = TrackedRun(EXPERIMENT, off)
    trainer = make_trainer(MLflowTracker(tracked, owner=True, dataset_dir=tmp_path))
    trainer.run()
    assert trainer.state.epoch == 2
    assert tracked.run_id is None
    assert list(tmp_path.iterdir()) == []


def test_without_mlflow_the_training_goes_on_with_one_warning(
    store_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr(mlflow_run, "_missing_reported", False)
    tracked = TrackedRun(EXPERIMENT, store_uri)
    validator = make_evaluator(MLflowTracker(tracked))
    trainer = make_trainer(MLflowTracker(tracked, owner=True), ValidationHandler(1, validator))
    with caplog.at_level(logging.WARNING, logger="nucsam_monai"):
        trainer.run()
    assert trainer.state.epoch == 2
    (record,) = [record for record in caplog.records if record.name.startswith("nucsam_monai")]
    assert "pip install mlflow" in record.getMessage()
    monkeypatch.undo()
    assert Store(store_uri).runs() == []


def test_other_processes_of_a_distributed_training_write_nothing(
    store: Store, tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MLflowTracker(tracked, owner=True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: 1)
    make_trainer(tracker).run()
    assert store.runs() == []


def test_a_store_that_fails_on_the_way_does_not_stop_the_training(
    tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def locked(*_: Any, **__: Any) -> None:
        raise mlflow.exceptions.MlflowException("database is locked")

    trainer = make_trainer(MLflowTracker(tracked, owner=True))
    trainer.add_event_handler(
        Events.EPOCH_STARTED(once=1), lambda: monkeypatch.setattr(tracked.client, "log_batch", locked)
    )
    trainer.run()
    assert trainer.state.epoch == 2
    assert "database is locked" in caplog.text


def test_a_run_that_nobody_closes_is_killed_at_exit(store: Store, tracked: TrackedRun) -> None:
    tracked.open()
    tracked._abandon()
    assert store.only_run().info.status == "KILLED"
    assert not tracked.is_open


def test_the_dataset_is_an_input_with_digest_and_context(
    store: Store, tracked: TrackedRun, tmp_path: Path
) -> None:
    description = {"name": "toy", "training": [{"id": "a"}, {"id": "b"}], "validation": [{"id": "c"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    validator = make_evaluator(MLflowTracker(tracked, dataset_dir=tmp_path))
    tracker = MLflowTracker(tracked, owner=True, dataset_dir=tmp_path)
    make_trainer(tracker, ValidationHandler(1, validator)).run()
    make_evaluator(MLflowTracker(tracked, dataset_dir=tmp_path, split="validation")).run()

    def inputs(run: Any) -> dict[str, Any]:
        return {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}

    evaluation, training = store.runs()
    by_context = inputs(training)
    assert set(by_context) == {"training", "validation"}
    assert {dataset.name for dataset in by_context.values()} == {"toy"}
    assert json.loads(by_context["training"].profile)["items"] == 2
    assert by_context["training"].digest != by_context["validation"].digest
    # the same items have the same digest, whatever they are used for
    assert inputs(evaluation)["evaluation"].digest == by_context["validation"].digest


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


def test_repeated_evaluations_beside_the_stock_handler_stay_apart(
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
        "imports": ["$import torch", "$import monai", "$from tests.handlers import test_mlflow_tracker"],
        "data": "$test_mlflow_tracker.batches()",
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
