import copy
import pickle

import pytest
import torch
from torch import nn

from nucsam_monai.networks.sam import ImageEncoder
from nucsam_monai.networks.sam.kernels import FrozenCache


class Scaling(nn.Module):
    """Counts how often its function runs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3), requires_grad=False)
        self.calls = 0
        self.cached = FrozenCache(self.compute)

    def compute(self, weight, factor):
        self.calls += 1
        return weight * factor

    def forward(self, factor=2):
        return self.cached(self.weight, factor)


def assign_tensor(module):
    module.load_state_dict({"weight": torch.full((3,), 5.0)}, assign=True)
    module.requires_grad_(False)


def write_in_place(module):
    with torch.no_grad():
        module.weight.add_(1)


def replace_parameter(module):
    module.weight = nn.Parameter(torch.full((3,), 5.0), requires_grad=False)


def replace_data(module):
    module.weight.data = torch.full((3,), 5.0)


CHANGES = [
    lambda module: module.load_state_dict({"weight": torch.full((3,), 5.0)}),
    assign_tensor,
    write_in_place,
    replace_parameter,
    replace_data,
    lambda module: module.to(torch.float64),
    lambda module: module.to(torch.bfloat16),
    lambda module: module.state_dict()["weight"].mul_(3),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_parameter_is_recomputed(change):
    module = Scaling()
    assert module() is module()
    assert module.calls == 1
    change(module)
    assert torch.equal(module(), module.weight * 2)
    assert module().dtype == module.weight.dtype
    assert module.calls == 2


def test_other_arguments_are_recomputed():
    module = Scaling()
    assert [module(factor)[0].item() for factor in (2, 3, 3, 2)] == [2, 3, 3, 2]
    assert module.calls == 3


def test_a_moved_parameter_never_meets_the_memory_of_its_predecessor():
    module = Scaling()
    for value in range(20):  # freed memory is handed out again at once
        module.weight = nn.Parameter(torch.full((3,), float(value)), requires_grad=False)
        assert module()[0] == 2 * value


def test_trainable_parameters_are_not_cached_and_learn():
    module = Scaling()
    module()
    module.requires_grad_(True)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module().sum().backward()
    optimizer.step()
    assert torch.equal(module(), module.weight * 2)
    with torch.no_grad():
        module()
    assert module.calls == 4


def test_what_inference_mode_computed_serves_training():
    module = Scaling()
    with torch.inference_mode():
        module()
    source = torch.ones(3, requires_grad=True)
    (source * module()).sum().backward()
    assert source.grad.tolist() == [2, 2, 2]
    assert module.calls == 1


def test_results_are_constants_to_autograd():
    assert not Scaling()().requires_grad


def test_copies_and_pickles_are_independent(small, randomise):
    encoder = randomise(ImageEncoder(small)).eval().requires_grad_(False)
    image = torch.randn(1, 3, 28, 24)
    expected = encoder(image).embedding
    size = len(pickle.dumps(randomise(ImageEncoder(small))))
    assert len(pickle.dumps(encoder)) < 1.05 * size  # nothing cached travels
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(twin(image).embedding, expected)
        randomise(twin, seed=1)
        assert not torch.allclose(twin(image).embedding, expected)
        assert torch.equal(encoder(image).embedding, expected)


def test_new_weights_of_a_frozen_encoder_count_at_every_size(small, randomise):
    encoder = randomise(ImageEncoder(small)).eval().requires_grad_(False)
    other = randomise(ImageEncoder(small), seed=1).eval()  # trainable: computes everything anew
    images = [torch.randn(1, 3, *size) for size in ((24, 24), (28, 24), (20, 44))]
    for image in images:
        encoder(image)
    encoder.load_state_dict(other.state_dict())
    for image in images:
        torch.testing.assert_close(encoder(image).embedding, other(image).embedding)
