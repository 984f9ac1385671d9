"""The handler that tracks engines."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.handlers import (
    LrScheduleHandler,
    MetricsSaver,
    StatsHandler,
    ValidationHandler,
    from_engine,
)

from nucsam_monai.handlers import MLflowTracker, TrackedRun
from nucsam_monai.handlers import mlflow as mlflow_run
from nucsam_monai.handlers.mlflow import losses_of
from tests.handlers.tracked_engines import EXPERIMENT, Breaking, Store, make_evaluator, make_trainer


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
    assert run.info.run_name == "demo, toy, seed 7"
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
    assert all(0 < seconds < 60 for seconds in store.curve(run, "epoch_seconds").values())
    assert set(store.curve(run, "epoch_seconds")) == {1, 2}
    assert store.artifacts(run) == {"train.json", "overlays", "tables"}
    assert store.artifacts(run, "overlays") == {"overlays/one.png"}
    assert "tables/metrics.csv" in store.artifacts(run, "tables")


def test_artifacts_lie_next_to_the_database(store: Store, tracked: TrackedRun, tmp_path: Path) -> None:
    with tracked:
        (tmp_path / "a.txt").write_text("a")
        tracked.log_artifacts([tmp_path / "a.txt"])
    folder = tmp_path / "tracking store" / "mlruns" / "nucsam" / "demo"
    assert (folder / store.only_run().info.run_id / "artifacts" / "a.txt").read_text() == "a"


@pytest.mark.parametrize("tracker_first", [True, False])
@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
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


def test_a_resumed_training_continues_its_run(store: Store, store_uri: str) -> None:
    first = TrackedRun(EXPERIMENT, store_uri, params={"lr": 0.1})
    with pytest.raises(SystemExit):
        make_trainer(MLflowTracker(first, owner=True), loss=Breaking(SystemExit(143), at=5)).run()
    resumed = TrackedRun(EXPERIMENT, store_uri, params={"lr": 0.2})
    resumed.take_up(str(first.run_id), 1, {"optimizer#lr": "0.2"})
    trainer = make_trainer(MLflowTracker(resumed, owner=True), epochs=3)
    trainer.run()
    run = store.only_run()
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags
    assert run.data.params == {"lr": "0.1", "after_epoch_1.optimizer.lr": "0.2"}
    for metric in ("lr_group_0", "train_loss"):
        assert set(store.curve(run, metric)) == {1, 2, 3}
    trainer.run()  # no epochs are left, and it is a run of its own
    assert len(store.runs()) == 2


@pytest.mark.parametrize("experiment", [EXPERIMENT, "nucsam/other"])
def test_a_run_that_is_gone_is_replaced(
    store: Store, store_uri: str, experiment: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = TrackedRun(EXPERIMENT, store_uri, params={})
    with first:
        pass
    if experiment == EXPERIMENT:
        store.client.delete_run(first.run_id)
    resumed = TrackedRun(experiment, store_uri, params={"lr": 0.2})
    resumed.take_up(str(first.run_id), 1, {})
    with resumed, caplog.at_level(logging.WARNING):
        assert resumed.run_id != first.run_id
    assert store.only_run(experiment).data.params == {"lr": "0.2"}


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


def test_without_mlflow_the_training_continues_with_one_warning(
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
    assert "pip install 'nucsam-monai[train]'" in record.getMessage()
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


def test_a_run_that_is_never_closed_is_killed_at_exit(store: Store, tracked: TrackedRun) -> None:
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
