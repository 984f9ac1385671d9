import pytest
import torch
from ignite.engine import Engine

from nucsam_monai.handlers import NetworkEpoch, TrainingState


class Network:
    def __init__(self):
        self.begun = []

    def begin_epoch(self, epoch):
        self.begun.append(epoch)


@pytest.fixture
def network():
    return Network()


def test_the_network_learns_every_epoch_from_0(network):
    trainer = Engine(lambda engine, batch: None)
    NetworkEpoch(network).attach(trainer)
    trainer.run([0, 1], max_epochs=3)
    assert network.begun == [0, 1, 2]


def test_a_resumed_training_goes_on_in_its_epoch(network, tmp_path):
    weights, path = torch.nn.Linear(1, 1), tmp_path / "state.safetensors"
    for resume, max_epochs in ((False, 2), (True, 4)):
        trainer = Engine(lambda engine, batch: None)
        NetworkEpoch(network).attach(trainer)
        TrainingState(path, weights, {}, resume=resume).attach(trainer)
        trainer.run([0, 1], max_epochs=max_epochs)
    assert network.begun == [0, 1, 2, 3]
