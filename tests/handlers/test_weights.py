"""Weights: averaged, shared, saved when best."""

import copy
import logging
import math

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn

from nucsam_monai.engines import DomainBatchSampler
from nucsam_monai.handlers import BestWeightsSaver, SharedStatistics, TrainingState, WeightAveraging
from nucsam_monai.networks.sam import load_trained, read_header, save_trained
from nucsam_monai.networks.sam.weights import read_safetensors
from nucsam_monai.utils.errors import ConfigurationError

HEADER = {"method": "toy", "sam_variant": "none"}


class Validations:
    """A validator that is run after chosen epochs of a training with given losses."""

    def __init__(self, path, **options):
        self.network = nn.Linear(1, 1)
        self.saver = BestWeightsSaver(self.network, path, HEADER, **options)
        self.engine = Engine(lambda engine, batch: None)
        self.path = path

    def after(self, epoch, **metrics):
        """Validate, with the epoch in the weights; return the epoch of the saved weights."""
        nn.init.constant_(self.network.weight, float(epoch))
        self.engine.state.epoch = epoch
        self.engine.state.metrics = metrics
        self.saver.compare(self.engine)
        return self.saved()

    def saved(self):
        if not self.path.exists():
            return None
        epoch = int(read_safetensors(self.path)["weight"])
        assert read_header(self.path)["epoch"] == str(epoch)
        return epoch


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "model.safetensors"


def schedule(kind):
    items = [{"domain": name} for name in "ab"]
    return DomainBatchSampler(items, ["a", "b"], batch_size=1, epochs=2, schedule=kind)


@pytest.mark.parametrize("options", [{}, {"sampler": schedule("interleaved")}])
def test_only_improvements_are_saved(path, options):
    validations = Validations(path, **options)
    losses = [0.5, 0.6, 0.5, 0.4, math.nan, math.inf, 0.3]
    saved = [validations.after(epoch, val_loss=loss) for epoch, loss in enumerate(losses, start=1)]
    assert saved == [1, 1, 1, 4, 4, 4, 7]
    header = read_header(path)
    assert header["method"] == "toy"
    assert float(header["val_loss"]) == 0.3
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_nan_is_not_saved_and_said(path, caplog):
    with caplog.at_level(logging.WARNING):
        assert Validations(path).after(1, val_loss=math.nan) is None
    assert "val_loss is NaN" in caplog.text


def test_without_a_comparison_the_last_weights_are_saved(path, caplog):
    validations = Validations(path)
    validations.after(1, val_loss=math.nan)
    validations.after(2, val_loss=math.nan)
    with caplog.at_level(logging.WARNING):
        validations.saver.save_last(validations.engine)
    assert validations.saved() == 2
    assert "no epoch could be compared by val_loss" in caplog.text
    validations.after(3, val_loss=0.5)
    validations.after(4, val_loss=math.nan)
    validations.saver.save_last(validations.engine)
    assert validations.saved() == 3


def test_every_domain_of_a_sequential_training_starts_over(path):
    validations = Validations(path, sampler=schedule("sequential"))
    assert validations.after(1, val_loss_a=0.2, val_loss_b=9.0) == 1
    assert validations.after(2, val_loss_a=0.3, val_loss_b=0.1) == 1
    assert validations.after(3, val_loss_a=0.1, val_loss_b=0.9) == 3
    assert validations.after(4, val_loss_a=0.1, val_loss_b=0.8) == 4
    assert float(read_header(path)["val_loss_b"]) == 0.8


def test_every_stage_of_a_network_starts_over(path):
    validations = Validations(path, metric="val_dice", mode="max")
    for epoch, stage, dice in ((1, "generator", 0.9), (2, "generator", 0.8), (3, "segmenter", 0.1)):
        validations.network.stage = stage
        saved = validations.after(epoch, val_dice=dice)
    assert saved == 3
    resumed = Validations(path, metric="val_dice", mode="max")
    resumed.network.stage = "segmenter"
    resumed.saver.load_state_dict(validations.saver.state_dict())
    assert resumed.after(4, val_dice=0.05) == 3
    del (state := validations.saver.state_dict())["stage"]  # as written before stages were kept
    resumed.saver.load_state_dict(state)
    assert resumed.after(5, val_dice=0.05) == 3


def test_the_file_of_an_earlier_training_is_kept(path):
    Validations(path).after(5, val_loss=0.1)
    second = Validations(path)
    assert second.after(1, val_loss=0.9) == 1
    assert second.after(2, val_loss=0.8) == 2
    previous = path.with_name("model.previous.safetensors")
    assert read_header(previous)["epoch"] == "5"
    assert sorted(path.parent.iterdir()) == sorted([path, previous])


def test_another_metric_may_decide(path):
    validations = Validations(path, metric="error")
    assert validations.after(1, error=torch.tensor(0.5), val_loss=9.0) == 1
    assert validations.after(2, error=torch.tensor(0.7), val_loss=1.0) == 1


@pytest.mark.parametrize(
    ("options", "metrics", "message"),
    [
        ({}, {"val_dice": 1.0, "val_pq": 1.0}, "'val_loss': the validator reports val_dice, val_pq"),
        ({}, {}, "reports nothing"),
        ({"sampler": schedule("sequential")}, {"val_loss": 1.0}, "'val_loss_a'"),
    ],
)
def test_missing_metric_is_an_error(path, options, metrics, message):
    with pytest.raises(ConfigurationError, match=message):
        Validations(path, **options).after(1, **metrics)
    assert not path.exists()


def test_a_metric_that_grows_may_decide(path):
    validations = Validations(path, metric="val_dice", mode="max")
    dice = [0.0, math.nan, 0.4, 0.3, 0.5]
    saved = [validations.after(epoch, val_dice=value) for epoch, value in enumerate(dice, start=1)]
    assert saved == [1, 1, 3, 3, 5]
    resumed = Validations(path, metric="val_dice", mode="max")
    resumed.saver.load_state_dict(validations.saver.state_dict())
    assert resumed.after(6, val_dice=0.45) == 5
    resumed.saver.load_state_dict({"best": None, "domain": None, "owns_file": True})
    assert resumed.after(7, val_dice=0.01) == 7
    with pytest.raises(ConfigurationError, match="mode 'up': expected 'min' or 'max'"):
        Validations(path, mode="up")


def test_a_resumed_training_continues_comparing(path):
    first = Validations(path, sampler=schedule("sequential"))
    first.after(3, val_loss_b=0.5)
    second = Validations(path, sampler=schedule("sequential"))
    second.saver.load_state_dict(first.saver.state_dict())
    assert second.saver.state_dict() == first.saver.state_dict()
    assert second.after(4, val_loss_b=0.6) == 3
    assert second.after(4, val_loss_b=0.4) == 4
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_only_the_first_process_writes(path, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    for rank in (1, 0):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        validations = Validations(path)
        assert validations.after(1, val_loss=0.5) == (None if rank else 1)
        assert validations.saver.best == 0.5


def test_the_state_of_a_training_without_validation(path):
    saver = Validations(path).saver
    state = saver.state_dict()
    assert state == {"best": math.inf, "domain": None, "owns_file": False}
    saver.load_state_dict(state)
    assert saver.state_dict() == state


STEPS = 3  # of an epoch


class Training:
    """A network whose weight becomes the number of the step, and its average."""

    def __init__(self, average_path, resume=False, **options):
        self.network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
        self.averaging = WeightAveraging(self.network, **options)
        self.state = TrainingState(average_path, self.network, {"weight_averaging": self.averaging}, resume)
        self.engine = Engine(self._step)
        self.averaging.attach(self.engine)
        self.state.attach(self.engine)
        self.averages = []
        self.engine.add_event_handler(Events.ITERATION_COMPLETED, self._remember)

    def run(self, epochs):
        self.engine.run([0] * STEPS, max_epochs=epochs)
        return self.averages

    @property
    def average(self):
        return float(self.averaging.averaged[0].weight.detach())

    def _step(self, engine, _):
        for tensor in (*self.network.parameters(), self.network[1].running_mean):
            tensor.data.fill_(engine.state.iteration)

    def _remember(self, _):
        self.averages.append(self.average)


@pytest.fixture
def average_path(tmp_path):
    return tmp_path / "state.safetensors"


def expected_averages(steps, copied, decay):
    averages = []
    for step in range(1, steps + 1):
        averages.append(step if step <= copied else decay * averages[-1] + (1 - decay) * step)
    return averages


@pytest.mark.parametrize(("copy_epochs", "decay"), [(2, 0.9), (5, 0.99), (1, 0.0)])
def test_the_first_epochs_are_copied_and_the_others_averaged(average_path, copy_epochs, decay):
    training = Training(average_path, copy_epochs=copy_epochs, decay=decay)
    found = training.run(epochs=4)
    assert found == pytest.approx(expected_averages(4 * STEPS, copy_epochs * STEPS, decay))
    assert float(training.averaging.averaged[1].running_mean) == pytest.approx(found[-1])


def test_without_copying_the_average_starts_at_the_first_step(average_path):
    found = Training(average_path, copy_epochs=0, decay=0.5).run(epochs=1)
    assert found == pytest.approx([1.0, 1.5, 2.25])


def test_with_a_warm_up_few_steps_do_not_hold_the_first_ones(average_path):
    found = Training(average_path, copy_epochs=0, decay=0.6, warm_up=True).run(epochs=4)
    expected = [1.0]
    for step in range(2, 13):  # the share of step 9 is 0.5, that of step 14 would be the first one above 0.6
        share = min(0.6, step / (9 + step))
        expected.append(share * expected[-1] + (1 - share) * step)
    assert found == pytest.approx(expected)


def test_the_average_is_apart_from_the_training(average_path):
    training = Training(average_path, copy_epochs=0, decay=0.5)
    before = copy.deepcopy(training.network.state_dict())
    training.averaging.averaged[0].weight.data.fill_(99.0)
    assert all(torch.equal(value, before[name]) for name, value in training.network.state_dict().items())
    assert not training.averaging.averaged.training
    training.network.train()
    training.run(epochs=1)
    assert not training.averaging.averaged.training


@pytest.mark.parametrize("first", [1, 3])
def test_a_resumed_training_gives_the_same_average(average_path, first):
    options = {"copy_epochs": 2, "decay": 0.9}
    whole = Training(average_path.with_name("whole.safetensors"), **options).run(epochs=5)
    Training(average_path, **options).run(epochs=first)
    resumed = Training(average_path, resume=True, **options)
    assert resumed.run(epochs=5) == whole[first * STEPS :]


def test_the_average_is_exported_like_the_network(average_path):
    header = {"method": "toy", "sam_variant": "none"}
    training = Training(average_path, copy_epochs=1, decay=0.9)
    training.run(epochs=3)
    save_trained(average_path, training.averaging.averaged, header)
    other = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    load_trained(average_path, other, header)
    assert float(other[0].weight.detach()) == training.average


def test_without_a_decay_the_average_is_the_network_itself_and_has_no_state(average_path):
    training = Training(average_path, decay=None)
    assert training.averaging.averaged is training.network
    assert training.run(epochs=2) == list(range(1, 2 * STEPS + 1))
    assert training.averaging.state_dict() == {}
    assert Training(average_path, resume=True, decay=None).run(epochs=3)[-1] == 3 * STEPS


def test_after_n_steps_a_warm_average_keeps_at_most_their_share(average_path):
    found = Training(average_path, copy_epochs=0, decay=0.4, warm_up=True).run(epochs=3)
    expected = [1.0]
    for n in range(1, len(found)):
        share = min(0.4, (1 + n) / (10 + n))
        expected.append(share * expected[-1] + (1 - share) * (n + 1))
    assert found == pytest.approx(expected)


def validate(network):
    validator = Engine(lambda engine, batch: None)
    SharedStatistics(network).attach(validator)
    validator.run([0])


@pytest.fixture
def network():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    network(torch.randn(8, 2))
    return network


def test_every_process_validates_with_the_statistics_of_the_first(network, monkeypatch):
    first = [torch.full_like(buffer, 7) for buffer in network.buffers()]
    rest = iter(first)

    def broadcast(tensor, src):
        assert src == 0
        tensor.copy_(next(rest))

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "broadcast", broadcast)
    weights = [parameter.clone() for parameter in network.parameters()]
    validate(network)
    assert all(
        torch.equal(buffer, expected) for buffer, expected in zip(network.buffers(), first, strict=True)
    )
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), weights, strict=True))


def test_alone_nothing_changes(network):
    before = [buffer.clone() for buffer in network.buffers()]
    validate(network)
    assert all(torch.equal(one, two) for one, two in zip(network.buffers(), before, strict=True))
