import json

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.transforms import RandShiftIntensityd
from torch import nn

from nucsam_monai.engines import DomainBatchSampler, PrepareDomainBatch
from nucsam_monai.handlers import BestWeightsSaver, DomainScheduleHandler, TrainingState
from nucsam_monai.networks.sam.weights import read_safetensors
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError

EPOCHS = 3


class InterruptionError(Exception):
    pass


class Network(nn.Module):
    """A frozen layer, statistics, random numbers, and the domain that the engine hands over."""

    def __init__(self, channels=4):
        super().__init__()
        self.frozen = nn.Conv2d(1, channels, 1).requires_grad_(False)
        self.norm = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, image, domain):
        return self.head(self.drop(self.norm(self.frozen(image))))


class Training:
    """A small training of two domains with 5 and 3 images."""

    def __init__(
        self,
        path,
        schedule="interleaved",
        resume=False,
        channels=4,
        epochs=EPOCHS,
        lr=0.05,
        settings=None,
        run=None,
    ):
        generator = torch.Generator().manual_seed(1)
        items = [
            {
                "domain": name,
                "image": torch.randn(1, 2, 3, generator=generator),
                "label": torch.randn(1, 2, 3, generator=generator),
            }
            for name in ["a"] * 5 + ["b"] * 3
        ]
        sampler = DomainBatchSampler(items, ["a", "b"], batch_size=2, epochs=epochs, schedule=schedule)
        loader = DataLoader(
            Dataset(items, RandShiftIntensityd("image", offsets=1.0, prob=0.8)), batch_sampler=sampler
        )
        torch.manual_seed(0)
        self.network = Network(channels)
        self.optimizer = torch.optim.AdamW([p for p in self.network.parameters() if p.requires_grad], lr=lr)
        self.lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, gamma=0.7)
        self.best = BestWeightsSaver(self.network, path.with_name("model.safetensors"), {}, sampler=sampler)
        self.state = TrainingState(
            path,
            self.network,
            {"optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler, "best_weights": self.best},
            resume,
            settings=lambda: {"epochs": str(epochs), "lr": str(lr), "schedule": schedule, **(settings or {})},
            run=run,
        )
        self.trainer = SupervisedTrainer(
            device="cpu",
            max_epochs=sampler.total_epochs,
            train_data_loader=loader,
            network=self.network,
            optimizer=self.optimizer,
            loss_function=nn.MSELoss(),
            prepare_batch=PrepareDomainBatch(),
            decollate=False,
            train_handlers=[
                DomainScheduleHandler(
                    sampler, loader, self.optimizer, self.lr_scheduler, self.network, seed=3
                ),
                LrScheduleHandler(self.lr_scheduler, print_lr=False),
                self.state,
            ],
        )
        self.epochs, self.rates = [], []
        self.trainer.add_event_handler(
            Events.EPOCH_STARTED, lambda _: self.rates.append(self.optimizer.param_groups[0]["lr"])
        )
        self.trainer.add_event_handler(Events.EPOCH_STARTED, lambda e: self.epochs.append(e.state.epoch))

    def run(self, interrupt_in=None):
        """Train; stop with an exception after the first step of an epoch."""

        def interrupt(engine):
            if engine.state.epoch == interrupt_in:
                raise InterruptionError

        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, interrupt)
        torch.manual_seed(torch.seed() % 2**31)  # nothing may follow from the process's state
        if interrupt_in is None:
            self.trainer.run()
        else:
            with pytest.raises(InterruptionError):
                self.trainer.run()
        return self

    def everything(self):
        """All tensors and numbers that a training changes."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "lr": self.optimizer.param_groups[0]["lr"],
            "lr_scheduler": self.lr_scheduler.last_epoch,
        }


def assert_identical(one, other):
    torch.testing.assert_close(one.everything(), other.everything(), rtol=0, atol=0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.safetensors"


@pytest.mark.parametrize(
    ("schedule", "epochs", "interruptions"),
    [
        ("interleaved", 3, [2]),
        ("interleaved", 3, [1, 3, 3]),
        ("sequential", 6, [2]),
        ("sequential", 6, [4]),  # the first epoch of the second domain
        ("sequential", 6, [3, 6]),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, path, schedule, epochs, interruptions):
    whole = Training(tmp_path / "whole.safetensors", schedule).run()
    assert whole.epochs == list(range(1, epochs + 1))
    for interrupt_in in interruptions:
        Training(path, schedule, resume=True).run(interrupt_in)
    resumed = Training(path, schedule, resume=True).run()
    assert resumed.epochs == list(range(interruptions[-1], epochs + 1))
    assert_identical(resumed, whole)


def test_a_finished_training_is_not_trained_further(path):
    finished = Training(path).run()
    again = Training(path, resume=True).run()
    assert again.epochs == []
    assert_identical(again, finished)


def test_without_resume_a_training_starts_over(path):
    first = Training(path).run()
    second = Training(path).run()
    assert second.epochs == [1, 2, 3]
    assert_identical(first, second)


@pytest.mark.parametrize("changes", [{"epochs": 6}, {"epochs": 6, "lr": 0.2}, {"lr": 0.01}])
def test_a_resumed_training_has_the_rates_of_an_uninterrupted_one_with_its_settings(
    tmp_path, path, changes, caplog
):
    def training(target, **options):
        one = Training(target, **options)
        one.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(  # falls to 0 at the last epoch
            one.optimizer, lambda epoch: 1 - epoch / options.get("epochs", EPOCHS)
        )
        one.state.parts["lr_scheduler"] = one.lr_scheduler
        one.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: one.lr_scheduler.step())
        one.trainer.add_event_handler(Events.EPOCH_COMPLETED, one.state.save)
        return one

    whole = training(tmp_path / "whole.safetensors", **changes).run()
    training(path).run(interrupt_in=3)
    with caplog.at_level("INFO"):
        resumed = training(path, resume=True, **changes).run()
    assert resumed.rates == whole.rates[2:]
    for name, new in changes.items():
        assert f"{name} {new} instead of" in caplog.text


def test_other_settings_are_refused_by_name(path):
    loss = {"loss#weight": "1", "loss#kind": "dice"}
    Training(path, settings={"seed": "0", **loss, "flips#axes": "2", "text": "a"}).run(interrupt_in=2)
    with pytest.raises(
        ConfigurationError, match=r"seed \(was 0, is 1\), loss#weight \(was 1, is not given\)"
    ):
        Training(path, resume=True, settings={"seed": "1", "loss#kind": "dice"}).trainer.run()
    Training(path, resume=True, settings={"seed": "0", **loss, "new": "b", "num_workers": "4"}).run()


def test_the_length_of_a_sequential_training_stays(path):
    Training(path, "sequential").run(interrupt_in=2)
    with pytest.raises(ConfigurationError, match=r"epochs \(was 3, is 5\)"):
        Training(path, "sequential", resume=True, epochs=5).trainer.run()


def test_a_state_without_settings_is_taken_up_with_any(path):
    Training(path).run(interrupt_in=2)
    rewrite(path, settings="{}", run_id="")
    assert Training(path, resume=True, lr=0.1, settings={"seed": "5"}).run().epochs == [2, 3]


def test_the_tracked_run_is_continued(path):
    class Run:
        run_id = "7f"
        taken_up = None

        def take_up(self, *arguments):
            self.taken_up = arguments

    Training(path, run=Run()).run(interrupt_in=3)
    run = Run()
    Training(path, resume=True, run=run, lr=0.1).run()
    assert run.taken_up == ("7f", 2, {"lr": "0.1"})


def test_the_comparison_of_epochs_is_resumed_with_infinity_and_none(path):
    training = Training(path)
    training.best.followed.domain = 1
    training.best.owns_file = True
    training.run()
    resumed = Training(path, resume=True).run()
    assert resumed.best.state_dict() == {"best": float("inf"), "domain": 1, "owns_file": True}


def test_frozen_weights_are_not_written(path):
    Training(path).run()
    names = {name for name in read_safetensors(path) if name.startswith("network/")}
    assert "network/norm.running_mean" in names
    assert "network/head.weight" in names
    assert not any("frozen" in name for name in names)


def rewrite(path, **changes):
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata()
    header.update(changes)
    safetensors.torch.save_file(read_safetensors(path), path, metadata=header)


def change_parts(path, change):
    with safetensors.safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["parts"])
    change(document)
    rewrite(path, parts=json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged or cut off.*delete it"),
        (lambda path: path.write_bytes(b"not at all"), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (
            lambda path: rewrite(path, format="nucsam_monai.trained.1"),
            "its format is 'nucsam_monai.trained.1'",
        ),
        (lambda path: safetensors.torch.save_file({"a": torch.zeros(1)}, path), "its format is 'not named'"),
        (lambda path: rewrite(path, epoch="two"), "damaged training state"),
        (lambda path: rewrite(path, parts="{"), "damaged training state"),
        (lambda path: rewrite(path, parts="[1]"), "damaged training state"),
        (lambda path: change_parts(path, lambda parts: parts.pop("optimizer")), "holds the states of"),
        (
            lambda path: change_parts(path, lambda parts: parts.update(optimizer={})),
            "'optimizer' does not fit",
        ),
        (
            lambda path: change_parts(path, lambda parts: parts.update(optimizer={"__tensor__": "x"})),
            "'optimizer' does not fit",
        ),
    ],
)
def test_damaged_and_foreign_files_are_refused(path, damage, message):
    Training(path).run()
    damage(path)
    training = Training(path, resume=True)
    with pytest.raises(CheckpointError, match=message) as caught:
        training.trainer.run()
    assert str(path) in str(caught.value)
    assert training.epochs == []


def test_the_state_of_another_network_is_refused(path):
    Training(path, channels=4).run()
    with pytest.raises(CheckpointError, match="another shape"):
        Training(path, resume=True, channels=5).trainer.run()


def failing_write(tensors, file, metadata):
    file.write_bytes(b"half of it")
    raise OSError("No space left on device")


def test_a_failed_write_leaves_the_last_state(path, monkeypatch):
    Training(path).run(interrupt_in=2)
    before = path.read_bytes()
    training = Training(path, resume=True)
    monkeypatch.setattr(safetensors.torch, "save_file", failing_write)
    with pytest.raises(OSError, match="No space"):
        training.trainer.run()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_only_the_first_process_writes(path, monkeypatch):
    training = Training(path)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    for rank in (1, 0):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        training.state.save(training.trainer)
        assert path.exists() == (rank == 0)


def test_what_cannot_be_kept_is_said_before_anything_is_written(path):
    training = Training(path)
    training.best.best = object()
    with pytest.raises(TypeError):
        training.trainer.run()
    assert list(path.parent.iterdir()) == []
