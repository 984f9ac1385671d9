"""What a training does between its steps."""

import logging
import math
from itertools import chain

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.transforms import RandShiftIntensityd
from torch import nn

from nucsam_monai.engines.domain_schedule import DomainBatchSampler
from nucsam_monai.handlers import (
    EarlyStopping,
    EmbeddingCacheLog,
    FinalValidation,
    GradientClipping,
    NetworkEpoch,
    TrainingState,
    embedding_cache_log,
)
from nucsam_monai.handlers import training as training_handlers
from nucsam_monai.handlers.training import DomainScheduleHandler, LoaderLog
from nucsam_monai.networks import SAC
from nucsam_monai.networks.sam import EmbeddingCache
from nucsam_monai.networks.unsam import DomainBypass
from nucsam_monai.utils.errors import ConfigurationError

EPOCHS = 2


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 1)
        self.bypass = DomainBypass(1, 2, 3, common_scope="per_domain")


class Training:
    """A small training of domains with 5, 2 and 3 images that records what happens."""

    def __init__(self, *, schedule="sequential", seed=0, workers=0, generator=None, wrapped=False, **options):
        items = [
            {"domain": name, "value": torch.tensor([float(i)]), "index": i}
            for i, name in enumerate(["a"] * 5 + ["b"] * 2 + ["c"] * 3)
        ]
        self.sampler = DomainBatchSampler(items, ["a", "b", "c"], 2, EPOCHS, schedule=schedule, seed=seed)
        self.loader = DataLoader(
            Dataset(items, RandShiftIntensityd("value", offsets=1.0, prob=1.0)),
            batch_sampler=self.sampler,
            num_workers=workers,
            generator=generator,
            **options,
        )
        torch.manual_seed(0)
        self.network = Network()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.1)
        self.lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, gamma=0.5)
        self.trainer = Engine(self.step)
        network = nn.DataParallel(self.network) if wrapped else self.network
        DomainScheduleHandler(
            self.sampler, self.loader, self.optimizer, self.lr_scheduler, network, seed=seed
        ).attach(self.trainer)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.end_epoch)
        self.steps = []  # (epoch, images, values after the random transform, learning rate, Adam's steps)
        self.saved = {}

    def step(self, engine, batch):
        self.optimizer.zero_grad()
        self.network.head(batch["value"]).square().mean().backward()
        self.optimizer.step()
        self.steps.append(
            (
                engine.state.epoch,
                batch["index"].tolist(),
                batch["value"].flatten().tolist(),
                self.optimizer.param_groups[0]["lr"],
                int(self.optimizer.state[self.network.head.weight]["step"]),
            )
        )

    def end_epoch(self, engine):
        self.lr_scheduler.step()
        self.saved[engine.state.epoch] = dict(engine.state_dict())

    def run(self):
        self.trainer.run(self.loader, max_epochs=self.sampler.total_epochs)
        return self


def column(training, index, first=1):
    return [step[index] for step in training.steps if step[0] >= first]


def test_every_epoch_has_the_length_of_its_domain():
    training = Training().run()
    assert column(training, 0) == [1] * 3 + [2] * 3 + [3] + [4] + [5] * 2 + [6] * 2
    images = column(training, 1)
    assert sorted(chain(*images[:3])) == sorted(chain(*images[3:6])) == [0, 1, 2, 3, 4]
    assert sorted(images[6]) == sorted(images[7]) == [5, 6]
    assert sorted(chain(*images[8:10])) == sorted(chain(*images[10:])) == [7, 8, 9]


def test_interleaved_epochs_contain_all_images_and_keep_the_optimizer():
    training = Training(schedule="interleaved").run()
    assert column(training, 0) == [1] * 6 + [2] * 6
    assert sorted(chain(*column(training, 1)[:6])) == list(range(10))
    assert column(training, 4) == list(range(1, 13))
    assert column(training, 3) == [0.1] * 6 + [0.05] * 6


def test_every_domain_starts_with_a_new_optimizer_and_learning_rate():
    training = Training().run()
    assert column(training, 4) == [1, 2, 3, 4, 5, 6, 1, 2, 1, 2, 3, 4]
    assert column(training, 3) == pytest.approx([0.1] * 3 + [0.05] * 3 + [0.1, 0.05] + [0.1] * 2 + [0.05] * 2)
    assert training.lr_scheduler.last_epoch == EPOCHS


@pytest.mark.parametrize("wrapped", [False, True])
def test_common_embedding_is_handed_on_at_the_border_of_domains(wrapped):
    training = Training(wrapped=wrapped)
    weights = [blocks[0][0].weight for blocks in training.network.bypass.common]
    marks = []

    @training.trainer.on(Events.EPOCH_STARTED)
    def mark(engine):  # runs after the hand-over
        marks.append([weight.mean().item() for weight in weights])
        nn.init.constant_(weights[(engine.state.epoch - 1) // EPOCHS], engine.state.epoch)

    training.run()
    assert marks[2][1] == 2  # what epoch 2 left in the first domain's copy
    assert marks[3][1] == 3  # not handed on again inside a domain
    assert marks[4][1:] == [4, 4]


def test_networks_without_a_bypass_are_fine():
    training = Training()
    training.network.bypass = None
    assert len(training.run().steps) == 12


@pytest.mark.parametrize("options", [{}, {"generator": torch.Generator()}, {"workers": 1}])
def test_same_seeds_give_the_same_images_and_random_numbers(options):
    torch.manual_seed(123)
    first = Training(seed=4, **options).run()
    torch.manual_seed(321)
    assert Training(seed=4, **options).run().steps == first.steps
    values = {tuple(values) for values in column(first, 2)}
    assert len(values) == len(first.steps)
    if not options:
        assert column(Training(seed=5).run(), 2) != column(first, 2)


@pytest.mark.parametrize(
    ("schedule", "done"), [("interleaved", 1), *(("sequential", done) for done in range(1, 6))]
)
def test_resumed_training_continues_as_an_uninterrupted_one(schedule, done):
    whole = Training(schedule=schedule).run()
    resumed = Training(schedule=schedule)
    resumed.trainer.load_state_dict(whole.saved[done])
    assert resumed.trainer.state.epoch == done
    resumed.run()
    for index in (0, 1, 2):
        assert column(resumed, index) == column(whole, index, first=done + 1)


def test_processes_draw_different_random_numbers(monkeypatch):
    alone = column(Training(seed=4).run(), 2)
    for rank in (0, 1):
        monkeypatch.setattr(training_handlers, "rank_and_processes", lambda rank=rank: (rank, 2))
        assert (column(Training(seed=4).run(), 2) == alone) == (rank == 0)


def test_workers_that_outlive_an_epoch_are_refused():
    with pytest.raises(ConfigurationError, match="persistent_workers is true, expected false"):
        Training(workers=1, persistent_workers=True)


class StagedNetwork:
    def __init__(self):
        self.begun = []

    def begin_epoch(self, epoch):
        self.begun.append(epoch)


@pytest.fixture
def network():
    return StagedNetwork()


def test_the_network_learns_every_epoch_from_0(network):
    trainer = Engine(lambda engine, batch: None)
    NetworkEpoch(network).attach(trainer)
    trainer.run([0, 1], max_epochs=3)
    assert network.begun == [0, 1, 2]


def test_a_resumed_training_continues_in_its_epoch(network, tmp_path):
    weights, path = torch.nn.Linear(1, 1), tmp_path / "state.safetensors"
    for resume, max_epochs in ((False, 2), (True, 4)):
        trainer = Engine(lambda engine, batch: None)
        NetworkEpoch(network).attach(trainer)
        TrainingState(path, weights, {}, resume=resume).attach(trainer)
        trainer.run([0, 1], max_epochs=max_epochs)
    assert network.begun == [0, 1, 2, 3]


def engines(scores, patience, state=None, interval=1, metric="val_dice", **options):
    """A trainer of ``len(scores)`` epochs whose validations measure ``scores``."""
    validator = Engine(lambda engine, batch: None)
    trainer = Engine(lambda engine, batch: None)
    handler = EarlyStopping(validator, patience, **options)
    handler.attach(trainer)
    if state is not None:
        trainer.add_event_handler(Events.STARTED, lambda engine: handler.load_state_dict(state))

    @trainer.on(Events.EPOCH_COMPLETED(every=interval))
    def validate(engine):
        validator.run([0])

    measure = iter(scores)

    def score(engine):
        engine.state.metrics[metric] = next(measure)

    # before the handler under test, as the metrics of MONAI's evaluators are
    validator._event_handlers[Events.EPOCH_COMPLETED].insert(0, (score, (validator,), {}))
    return trainer, handler


def epochs(scores, patience, **options):
    trainer, _ = engines(scores, patience, **options)
    trainer.run([0], max_epochs=len(scores) * options.get("interval", 1))
    return trainer.state.epoch


@pytest.mark.parametrize(
    ("scores", "patience", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], 1, 4),
        ([0.3, 0.2, 0.1, 0.4], 2, 3),
        ([0.3, 0.2, 0.4, 0.4, 0.4, 0.5], 2, 5),
        ([0.3, 0.3], 1, 2),
        ([math.nan, math.nan, 0.1, math.nan, math.nan, math.nan], 3, 6),
        ([math.nan, math.nan, 0.1], 2, 2),
        ([0.3] * 30, None, 30),
    ],
)
def test_it_stops_after_as_many_validations_without_a_better_one(scores, patience, expected):
    assert epochs(scores, patience) == expected


def test_validations_are_counted_rather_than_epochs():
    assert epochs([0.3, 0.2, 0.1, 0.1], 2, interval=5) == 15


def test_a_resumed_training_continues_counting():
    trainer, handler = engines([0.3, 0.2], 3)
    trainer.run([0], max_epochs=2)
    state = handler.state_dict()
    assert state == {"best": 0.3, "without_improvement": 1}
    assert epochs([0.25, 0.25, 0.25], 3, state=state) == 2


def test_a_stopped_training_stays_stopped():
    trainer, _ = engines([0.5], 2, state={"best": 0.3, "without_improvement": 2})
    trainer.run([0], max_epochs=3)
    assert trainer.state.iteration == 0
    assert epochs([0.5, 0.2], 3, state={"best": 0.3, "without_improvement": 2}) == 2


class Staged(StagedNetwork):
    """A network that trains its second part from the third epoch on."""

    def begin_epoch(self, epoch):
        super().begin_epoch(epoch)
        self.stage = "first" if epoch < 2 else "second"


@pytest.mark.parametrize(("fixed", "expected"), [(("first",), 4), ((), 2)])
def test_a_stage_that_the_metric_does_not_show_is_not_counted(fixed, expected):
    network = Staged()
    network.fixed_stages = fixed
    trainer, _ = engines([0.9, 0.8, 0.1, 0.05, 0.01], 1, network=network)
    NetworkEpoch(network).attach(trainer)
    trainer.run([0], max_epochs=5)
    assert trainer.state.epoch == expected


def test_every_stage_has_its_own_best():
    network = Staged()
    trainer, handler = engines([0.9, 0.8, 0.1, 0.2, 0.15], 2, network=network)
    NetworkEpoch(network).attach(trainer)
    trainer.run([0], max_epochs=5)
    assert handler.state_dict() == {"best": 0.2, "without_improvement": 1, "stage": "second"}
    _, resumed = engines([], 2, network=network)
    resumed.load_state_dict(handler.state_dict())
    assert not resumed.followed.enter(6)


def test_the_turn_of_a_domain_ends_where_its_metric_does_not_improve():
    items = [{"domain": name} for name in "ab"]
    sampler = DomainBatchSampler(items, ["a", "b"], batch_size=1, epochs=4)
    validator, trainer = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    scores = iter([0.5, 0.4, 0.1, 0.2, 0.3, 0.2])
    trained = []
    EarlyStopping(validator, 1, sampler=sampler).attach(trainer)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine):
        trained.append(engine.state.epoch)
        validator.run([0])

    def score(engine):
        engine.state.metrics[f"val_dice_{'a' if trained[-1] <= 4 else 'b'}"] = next(scores)

    validator._event_handlers[Events.EPOCH_COMPLETED].insert(0, (score, (validator,), {}))
    trainer.run([0], max_epochs=sampler.total_epochs)
    assert trained == [1, 2, 5, 6, 7, 8]


def test_a_network_refuses_too_few_epochs_before_the_training():
    network = SAC("vit_tiny", 64, generator={"training": "pretrain", "pretrain_epochs": 3})
    NetworkEpoch(network, 4)
    with pytest.raises(ConfigurationError, match="found 3 epochs, expected more than the 3 of the generator"):
        NetworkEpoch(network, 3)


def test_values_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match="patience 0"):
        EarlyStopping(Engine(lambda engine, batch: None), 0)
    validator = Engine(lambda engine, batch: None)
    validator.state.metrics = {"val_loss": 1.0}
    with pytest.raises(ConfigurationError, match="'val_dice': the validator reports val_loss"):
        EarlyStopping(validator, 1).compare(validator)


class Recorder(SupervisedEvaluator):
    """Remembers the epochs after which it was asked to validate."""

    def __init__(self):
        super().__init__(device="cpu", val_data_loader=[], network=nn.Identity(), epoch_length=1)
        self.epochs = []

    def run(self, global_epoch=1):
        self.epochs.append(global_epoch)


@pytest.mark.parametrize(
    ("epochs", "interval", "expected"),
    [(3, 10, [3]), (10, 4, [4, 8, 10]), (4, 2, [2, 4]), (2, 1, [1, 2])],
)
def test_the_last_epoch_is_validated_once(epochs, interval, expected):
    recorder, trainer = Recorder(), Engine(lambda engine, batch: None)
    FinalValidation(interval=interval, validator=recorder).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    assert recorder.epochs == expected


def test_a_validation_by_iterations_ends_with_the_last_epoch():
    recorder, trainer = Recorder(), Engine(lambda engine, batch: None)
    FinalValidation(interval=100, validator=recorder, epoch_level=False).attach(trainer)
    trainer.run([0, 0], max_epochs=2)
    assert recorder.epochs == [2]


@pytest.mark.parametrize(("max_norm", "norm"), [(1.0, 1.0), (1e6, None)])
def test_a_step_is_as_long_as_the_clipped_gradient(max_norm, norm):
    network = nn.Linear(3, 2)
    start = [parameter.detach().clone() for parameter in network.parameters()]
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"image": torch.full((1, 3), 50.0), "label": torch.full((1, 2), -50.0)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=nn.MSELoss(),
        train_handlers=[GradientClipping(network, max_norm)],
        decollate=False,
    )
    trainer.run()
    moved = [old - new.detach() for old, new in zip(start, network.parameters(), strict=True)]
    length = torch.cat([change.flatten() for change in moved]).norm().item()
    if norm is None:
        assert 100 < length < max_norm
    else:
        assert length == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(("slow", "hint"), [(3.0, True), (0.1, False)])
def test_the_share_of_the_images_is_logged_once(caplog, monkeypatch, slow, hint):
    caplog.set_level(logging.INFO)
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def images():
        for _ in range(2):
            clock[0] += slow
            yield None

    def step(_engine, _image):
        clock[0] += 1.0

    trainer = Engine(step)
    LoaderLog().attach(trainer)
    trainer.run(images(), max_epochs=1, epoch_length=2)
    (said,) = [message for message in caplog.messages if message.startswith("the first epoch")]
    took = 2 * (slow + 1)
    assert said.startswith(
        f"the first epoch: 2 steps in {took:.1f} s, {100 * slow / (slow + 1):.0f} % for images."
    )
    assert said.endswith("Raise --num_workers.") == hint


def train(caplog, images, epochs, in_all=None):
    """Look up each of the numbered images in a cache, one a step, keep what is new, and return what is logged."""
    caplog.set_level(logging.INFO)
    cache = EmbeddingCache(None, max_memory_bytes=10**6)

    def step(_engine, image):
        if cache.get(str(image)) is None:
            cache.put(str(image), {"embedding": torch.zeros(1)}, {})

    trainer = Engine(step)
    EmbeddingCacheLog(cache, in_all).attach(trainer)
    trainer.run(images, max_epochs=epochs)
    return [message for message in caplog.messages if message.startswith("embedding cache")]


@pytest.mark.parametrize(("images", "steps"), [(range(9), 3), ([0, 1], 2), ([0], 1)])
def test_the_first_epoch_is_announced_once_and_early(caplog, images, steps):
    said = train(caplog, images, epochs=2)
    assert said[0].startswith(f"embedding cache: {steps} steps took")
    assert said[0].endswith(
        f"SAM ran for {steps} of {steps} images so far, and the others were in the cache."
    )
    assert sum("this epoch takes about" in message for message in said) == 1


def test_a_cache_that_will_be_too_small_is_announced(caplog):
    said = train(caplog, [0, 1], epochs=1, in_all=6 * 10**9)  # of two bytes each
    assert said[1].endswith(
        "12 GB, and 10 GB are permitted, so SAM runs again for most of them in every epoch; "
        "raise embedding_cache_gb."
    )
    said = train(caplog, [0, 1], epochs=1, in_all=4 * 10**9)
    assert said[-2].endswith("take 8 GB, and 10 GB are permitted.")
    assert embedding_cache_log(EmbeddingCache(None, max_memory_bytes=1), [0] * 3, 50).images == 150
    assert embedding_cache_log(EmbeddingCache(None, max_memory_bytes=1), [0] * 3, None).images is None


def test_every_epoch_is_counted_for_itself(caplog):
    said = train(caplog, [0, 1, 0, 2], epochs=2)
    counts = [message.split("; ")[1] for message in said if "epoch 1 " in message or "epoch 2 " in message]
    assert counts == [
        "SAM ran for 3 images, 1 were in the cache.",
        "SAM ran for 0 images, 4 were in the cache.",
    ]
