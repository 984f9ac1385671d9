from functools import partial, partialmethod

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.parallel import DistributedDataParallel

from nucsam_monai.networks import compile_modules
from nucsam_monai.utils.errors import ConfigurationError

GRAPHS = 3
"""Four blocks, but three kinds: windows on frozen tokens (the first block), windows, the whole grid."""

CPU = torch.device("cpu")


@pytest.fixture
def graphs(monkeypatch):
    """Count graphs and run them as they are: tracing and guards are real, kernels need no C++ compiler."""
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=counter))
    with torch._dynamo.config.patch(recompile_limit=8):
        yield counter
    torch._dynamo.reset()


def test_outputs_gradients_and_keys_stay(micro_unsam, images, graphs):
    plain, compiled = micro_unsam(), micro_unsam()
    compile_modules(compiled.image_encoder.blocks, CPU)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for network in (plain, compiled):
        network.train()(images, "b").mask_logits.square().mean().backward()
    assert graphs.frame_count == GRAPHS
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.slow
def test_domains_share_graphs_and_batch_sizes_stop_compiling(micro_unsam, graphs):
    network = micro_unsam()
    compile_modules(network.image_encoder.blocks, CPU)
    image = torch.randn(4, 3, 64, 64)

    def run_all(grad, counts=(2, 4, 1)):
        network.train(grad)
        with torch.set_grad_enabled(grad):
            for count in counts:
                for domain in "ab":
                    network(image[:count], domain)

    run_all(True)
    after_training = graphs.frame_count
    assert after_training == 3 * GRAPHS  # batches of the first size, of any other size, of one
    run_all(False)
    after_evaluation = graphs.frame_count
    assert after_training < after_evaluation <= 15
    run_all(True, counts=(3,))
    run_all(False, counts=(3, 1))
    assert graphs.frame_count == after_evaluation
    assert torch._dynamo.config.recompile_limit > 15


def test_a_compiled_network_trains_in_parallel(micro_unsam, images, graphs, tmp_path):
    plain, compiled = micro_unsam(), micro_unsam()
    compile_modules(compiled.image_encoder.blocks, CPU)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(compiled, find_unused_parameters=True)
        for network in (plain, parallel):
            network.train()(images, "a").mask_logits.square().mean().backward()
    finally:
        dist.destroy_process_group()
    assert graphs.frame_count == GRAPHS
    gradients = dict(plain.named_parameters())
    for name, parameter in compiled.named_parameters():
        if parameter.grad is not None and gradients[name].grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name].grad)


def test_without_a_compiler_the_message_says_what_to_do(monkeypatch):
    def no_kernels(graph, inputs):
        raise FileNotFoundError("g++")

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=no_kernels))
    module = nn.Linear(2, 2)
    with pytest.raises(ConfigurationError, match=r"device 'cpu'.*g\+\+.*compile to false"):
        compile_modules([module], CPU)
    assert module._compiled_call_impl is None
