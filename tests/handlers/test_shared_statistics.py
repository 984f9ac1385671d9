import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine

from nucsam_monai.handlers import SharedStatistics


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
