"""Handlers that every engine of a kind has, each list under one name."""

import json
import logging
import os
import socket
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import IterationEvents, SupervisedEvaluator
from torch import nn
from torch.utils.data import TensorDataset

from nucsam_monai.engines import DomainBatchSampler, ResultsFolder, training_loader, warmup_cosine
from nucsam_monai.handlers import (
    BestWeightsSaver,
    EarlyStopping,
    EvaluationHandlers,
    InferenceHandlers,
    TrackedRun,
    TrainingHandlers,
    ValidationHandlers,
    WeightAveraging,
    evaluation_facts,
    evaluation_tags,
    run_tags,
)
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError
from nucsam_monai.utils.lock import LOCK_NAME

HEADER = {"method": "test", "sam_variant": "none"}
RUN = TrackedRun("nucsam/test", "off", params={}, dataset_dir="data", split_protocol="plain")


def names(
    handlers: TrainingHandlers | ValidationHandlers | EvaluationHandlers | InferenceHandlers,
) -> list[str]:
    return [type(handler).__name__ for handler in handlers.handlers]


def training_handlers(folder: Path, loader: DataLoader | None = None, **more: object) -> TrainingHandlers:
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    sampler = DomainBatchSampler([{"domain": "a"}] * 3, ["a"], batch_size=1, epochs=2, seed=7)
    return TrainingHandlers(
        RUN,
        data_loader=loader or training_loader(TensorDataset(torch.zeros(3, 1)), sampler),
        lr_scheduler=warmup_cosine(optimizer, 1, 2),
        network=network,
        validator=SupervisedEvaluator(torch.device("cpu"), [], network),
        best_weights=BestWeightsSaver(network, folder / "model.safetensors", HEADER),
        **{"val_interval": 1, **more},
    )


def test_handlers_of_a_training(tmp_path: Path) -> None:
    class Extra:
        def attach(self, engine: Engine) -> None:
            engine.extra = True

    handlers = training_handlers(tmp_path, extra=[Extra(), None], artifacts=["sam.safetensors"])
    assert names(handlers) == [
        "MLflowTracker",
        "DomainScheduleHandler",
        "Extra",
        "GradientClipping",
        "ProgressBar",
        "StatsHandler",
        "FinalValidation",
        "LrScheduleHandler",
        "TrainingState",
    ]
    tracker, schedule, state = handlers.handlers[0], handlers.handlers[1], handlers.handlers[-1]
    assert tracker.artifacts == [str(tmp_path / "model.safetensors"), "sam.safetensors"]
    assert (tracker.dataset_dir, tracker.split_protocol, tracker.owner) == ("data", "plain", True)
    assert schedule.seed == 7
    assert state.path == tmp_path / "training_state.safetensors"
    assert set(state.parts) == {"optimizer", "lr_scheduler", "best_weights"}
    trainer = Engine(lambda engine, batch: None)
    trainer.register_events(*IterationEvents)
    handlers.attach(trainer)
    assert trainer.extra


def attached(handlers: TrainingHandlers) -> Engine:
    trainer = Engine(lambda engine, batch: None)
    trainer.register_events(*IterationEvents)
    handlers.attach(trainer)
    return trainer


def test_a_second_training_in_the_folder_is_refused(tmp_path: Path) -> None:
    other = tmp_path / LOCK_NAME
    holder = {"host": socket.gethostname(), "process": os.getppid(), "since": "2026-01-02 03:04:05"}
    other.write_text(json.dumps(holder))
    trainer = attached(training_handlers(tmp_path, val_interval=None))
    with pytest.raises(ConfigurationError, match=f"process {os.getppid()} on .* since 2026-01-02"):
        trainer.run([0], max_epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]
    other.unlink()
    attached(training_handlers(tmp_path, val_interval=None)).run([0], max_epochs=1)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "training_state.safetensors"}


@pytest.mark.parametrize(
    ("epoch", "said"),
    [(1, "before anything was kept"), (3, "holds it after epoch 2. Continue with --resume True")],
)
def test_stopping_a_training_logs_what_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, epoch: int, said: str
) -> None:
    def stop(engine: Engine) -> None:
        if engine.state.epoch == epoch:
            raise SystemExit(143)

    trainer = attached(training_handlers(tmp_path, val_interval=None))
    trainer.add_event_handler(Events.ITERATION_STARTED, stop)
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit):
        trainer.run([0], max_epochs=5)
    assert said in caplog.text
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_training_may_do_without_validation(tmp_path: Path) -> None:
    assert "FinalValidation" not in names(training_handlers(tmp_path, val_interval=None))


def test_what_a_stage_averages_and_stops_by_is_kept(tmp_path: Path) -> None:
    averaging = WeightAveraging(nn.Linear(1, 1))
    stopping = EarlyStopping(Engine(lambda engine, batch: None))
    handlers = training_handlers(
        tmp_path,
        stage="prompter",
        weight_averaging=averaging,
        early_stopping=stopping,
        parts={"more": averaging},
    )
    state = handlers.handlers[-1]
    assert state.path.name == "prompter_state.safetensors"
    assert {"weight_averaging", "early_stopping", "more"} <= set(state.parts)
    assert {averaging, stopping} <= set(handlers.handlers)


def test_a_training_needs_the_sampler_of_domains(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(torch.zeros(3, 1)))
    with pytest.raises(ConfigurationError, match="expected a DomainBatchSampler"):
        training_handlers(tmp_path, loader)


def test_handlers_of_a_validation_and_of_an_evaluation(tmp_path: Path) -> None:
    saver = BestWeightsSaver(nn.Linear(1, 1), tmp_path / "model.safetensors", {})
    one, several = (ValidationHandlers([], RUN, savers, "test") for savers in (saver, [saver, saver]))
    assert names(one) == ["StatsHandler", "MLflowTracker", "BestWeightsSaver"]
    assert names(several)[2:] == ["BestWeightsSaver"] * 2
    assert one.handlers[1].split == "test"
    evaluation = EvaluationHandlers([saver], RUN, ["test", "validation"], tmp_path)
    assert names(evaluation) == ["BestWeightsSaver", "ProgressBar", "StatsHandler", "MLflowTracker"]
    tracker = evaluation.handlers[-1]
    assert (tracker.owner, tracker.split) == (True, "test+validation")
    assert f"{tmp_path}/summary.json" in tracker.artifacts
    assert EvaluationHandlers([], RUN, "test").handlers[-1].artifacts == []


def test_an_evaluation_needs_weights(tmp_path: Path) -> None:
    facts = {"params": {}, "dataset_dir": "data", "split_protocol": "plain"}
    for weights, remedy in (
        ({"trained": None}, r"\(checkpoint\)\."),
        ({"sam": None}, r"those of SAM \(sam_checkpoint\)"),
    ):
        with pytest.raises(CheckpointError, match=f"all of the network's would be random.*{remedy}"):
            EvaluationHandlers(
                [], TrackedRun("nucsam/test", "off", **facts, weights=weights), "test", tmp_path
            )
    for weights in ({"sam": "sam.pth", "trained": None}, {"sam": None, "trained": "model.safetensors"}):
        EvaluationHandlers([], TrackedRun("nucsam/test", "off", **facts, weights=weights), "test", tmp_path)


def test_handlers_of_an_inference(tmp_path: Path) -> None:
    results = ResultsFolder(tmp_path, [])
    inference = InferenceHandlers(results, 64)
    assert names(inference) == ["PredictionWriter", "ProgressBar", "StatsHandler"]
    writer = inference.handlers[0]
    assert (writer.output_dir, writer.overlay_px, writer.results) == (tmp_path, 64, results)


def test_tags_and_facts() -> None:
    tags = run_tags("unsam", ["a", "b"], stage="prompter")
    assert (tags["dataset"], tags["stage"], tags["split"], tags["protocol"]) == (
        "a+b",
        "prompter",
        None,
        "supervised",
    )
    items = [{"domain": "b"}, {"domain": "a"}]
    assert evaluation_tags("sac", items, ["test", "validation"], "zero_shot", "joint") == {
        "bundle": "sac",
        "stage": "joint",
        "dataset": "a+b",
        "split": "test+validation",
        "protocol": "zero_shot",
    }
    assert evaluation_facts("unsam", None) == {"bundle": "unsam", "checkpoint": None, "weights": None}
