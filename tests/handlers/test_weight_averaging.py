import copy

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from nucsam_monai.handlers import TrainingState, WeightAveraging
from nucsam_monai.networks.sam import load_trained, save_trained

STEPS = 3  # of an epoch


class Training:
    """A network whose weight becomes the number of the step, and its average."""

    def __init__(self, path, resume=False, **options):
        self.network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
        self.averaging = WeightAveraging(self.network, **options)
        self.state = TrainingState(path, self.network, {"weight_averaging": self.averaging}, resume)
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
def path(tmp_path):
    return tmp_path / "state.safetensors"


def expected_averages(steps, copied, decay):
    averages = []
    for step in range(1, steps + 1):
        averages.append(step if step <= copied else decay * averages[-1] + (1 - decay) * step)
    return averages


@pytest.mark.parametrize(("copy_epochs", "decay"), [(2, 0.9), (5, 0.99), (1, 0.0)])
def test_the_first_epochs_are_copied_and_the_others_averaged(path, copy_epochs, decay):
    training = Training(path, copy_epochs=copy_epochs, decay=decay)
    found = training.run(epochs=4)
    assert found == pytest.approx(expected_averages(4 * STEPS, copy_epochs * STEPS, decay))
    assert float(training.averaging.averaged[1].running_mean) == pytest.approx(found[-1])


def test_without_copying_the_average_starts_at_the_first_step(path):
    found = Training(path, copy_epochs=0, decay=0.5).run(epochs=1)
    assert found == pytest.approx([1.0, 1.5, 2.25])


def test_with_a_warm_up_few_steps_do_not_hold_the_first_ones(path):
    found = Training(path, copy_epochs=0, decay=0.6, warm_up=True).run(epochs=4)
    expected = [1.0]
    for step in range(2, 13):  # the share of step 9 is 0.5, that of step 14 would be the first one above 0.6
        share = min(0.6, step / (9 + step))
        expected.append(share * expected[-1] + (1 - share) * step)
    assert found == pytest.approx(expected)


def test_the_average_is_apart_from_the_training(path):
    training = Training(path, copy_epochs=0, decay=0.5)
    before = copy.deepcopy(training.network.state_dict())
    training.averaging.averaged[0].weight.data.fill_(99.0)
    assert all(torch.equal(value, before[name]) for name, value in training.network.state_dict().items())
    assert not training.averaging.averaged.training
    training.network.train()
    training.run(epochs=1)
    assert not training.averaging.averaged.training


@pytest.mark.parametrize("first", [1, 3])
def test_a_resumed_training_gives_the_same_average(path, first):
    options = {"copy_epochs": 2, "decay": 0.9}
    whole = Training(path.with_name("whole.safetensors"), **options).run(epochs=5)
    Training(path, **options).run(epochs=first)
    resumed = Training(path, resume=True, **options)
    assert resumed.run(epochs=5) == whole[first * STEPS :]


def test_the_average_is_exported_like_the_network(path):
    header = {"method": "toy", "sam_variant": "none"}
    training = Training(path, copy_epochs=1, decay=0.9)
    training.run(epochs=3)
    save_trained(path, training.averaging.averaged, header)
    other = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    load_trained(path, other, header)
    assert float(other[0].weight.detach()) == training.average


def test_without_a_decay_the_average_is_the_network_itself_and_has_no_state(path):
    training = Training(path, decay=None)
    assert training.averaging.averaged is training.network
    assert training.run(epochs=2) == list(range(1, 2 * STEPS + 1))
    assert training.averaging.state_dict() == {}
    assert Training(path, resume=True, decay=None).run(epochs=3)[-1] == 3 * STEPS


def test_after_n_steps_a_warm_average_keeps_at_most_their_share(path):
    found = Training(path, copy_epochs=0, decay=0.4, warm_up=True).run(epochs=3)
    expected = [1.0]
    for n in range(1, len(found)):
        share = min(0.4, (1 + n) / (10 + n))
        expected.append(share * expected[-1] + (1 - share) * (n + 1))
    assert found == pytest.approx(expected)
