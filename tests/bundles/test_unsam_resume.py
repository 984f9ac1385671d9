"""An interrupted training of the UN-SAM bundle ends with the very weights of an uninterrupted one."""

from pathlib import Path

import pytest
from ignite.engine import Engine, Events

from nucsam_monai.utils.errors import ConfigurationError
from tests.bundles.conftest import Training
from tests.bundles.runs import assert_same_tensors, raised_from
from tests.bundles.unsam_runs import bundle, train
from tests.handlers.tracked_engines import Store

EPOCHS = {"interleaved": 3, "sequential": 2}  # sequential: of each of the two domains


class PowerCutError(Exception):
    """The machine goes down."""


def interrupt(epoch: int, **settings: object) -> None:
    """Train until the second iteration of ``epoch``."""

    def cut(engine: Engine) -> None:
        if engine.state.epoch == epoch and (engine.state.iteration - 1) % engine.state.epoch_length == 1:
            raise PowerCutError

    workflow = bundle(**settings)
    workflow.trainer.add_event_handler(Events.ITERATION_STARTED, cut)
    with pytest.raises(RuntimeError) as error:
        workflow.run()
    assert raised_from(error.value, PowerCutError)


def interrupt_at_the_start(epoch: int, **settings: object) -> None:
    def cut(engine: Engine) -> None:
        if engine.state.epoch == epoch:
            raise PowerCutError

    workflow = bundle(**settings)
    workflow.trainer.add_event_handler(Events.ITERATION_STARTED, cut)
    with pytest.raises(RuntimeError):
        workflow.run()


@pytest.fixture(scope="module")
def uninterrupted(training: Training, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {schedule: tmp_path_factory.mktemp(schedule) for schedule in EPOCHS}
    for schedule, folder in folders.items():
        settings = {**training.settings, "schedule": schedule, "epochs": EPOCHS[schedule]}
        train(**settings, output_dir=str(folder))
    return folders


@pytest.mark.parametrize(
    ("schedule", "epoch"),
    [
        ("interleaved", 2),
        ("sequential", 2),
        pytest.param("sequential", 3, id="sequential-first epoch of the second domain"),
    ],
)
def test_a_resumed_training_ends_with_the_same_weights(
    training: Training, uninterrupted: dict[str, Path], tmp_path: Path, schedule: str, epoch: int
) -> None:
    settings = {**training.settings, "schedule": schedule, "epochs": EPOCHS[schedule]}
    settings["output_dir"] = str(tmp_path)
    interrupt(epoch, **settings)
    resumed = train(**settings, resume=True)
    assert resumed.trainer.state.epoch == resumed.trainer.state.max_epochs
    for name in ("model.safetensors", "training_state.safetensors"):
        assert_same_tensors(tmp_path / name, uninterrupted[schedule] / name)


def test_a_longer_training_at_another_rate_continues_in_its_run(
    training: Training, store: Store, store_uri: str, tmp_path: Path
) -> None:
    settings = {**training.settings, "epochs": 2, "samples_per_epoch": 1, "tracking_uri": store_uri}
    settings["output_dir"] = str(tmp_path)
    interrupt_at_the_start(2, **settings)
    with pytest.raises(RuntimeError) as error:
        train(**{**settings, "seed": 1, "batch_size": 1}, resume=True)
    refused = raised_from(error.value, ConfigurationError) or ""
    assert "seed (was 0, is 1), batch_size (was 2, is 1)" in refused
    train(**{**settings, "epochs": 3, "lr": 0.01, "val_interval": 2}, resume=True)
    run = store.only_run("nucsam/unsam")
    assert run.info.status == "FINISHED"
    assert run.data.params["after_epoch_1.lr"] == "0.01"
    rates = store.curve(run, "lr_group_0")
    assert set(store.curve(run, "val_dice")) == set(rates) == {1, 2, 3}
    assert rates[2] == pytest.approx(0.01)
    assert rates[3] < rates[2]


def test_a_new_training_keeps_the_weights_of_the_last_one(training: Training, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(training.weights.read_bytes())
    train(**{**training.settings, "output_dir": str(tmp_path), "samples_per_epoch": 1})
    assert (tmp_path / "model.previous.safetensors").read_bytes() == training.weights.read_bytes()
    assert weights.read_bytes() != training.weights.read_bytes()
