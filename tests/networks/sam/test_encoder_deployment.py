"""The encoder under what PyTorch wraps around a network: compilers, exporters, autocast, several processes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nucsam_monai.networks.sam import BlockAdapter, ImageEncoder, SAMVariant

SIZE = (28, 24)  # a grid of 7 x 6 tokens, windows of 5: regions of 5 x 5, 5 x 1, 2 x 5 and 2 x 1


class WindowMean(BlockAdapter):
    def windows(self, attended):
        return attended + attended.mean((1, 2), keepdim=True)


class Embed(nn.Module):
    """Exporters want a tensor back."""

    def __init__(self, encoder, adapters=None):
        super().__init__()
        self.encoder = encoder
        self.adapters = adapters

    def forward(self, image):
        return self.encoder(image, adapters=self.adapters).embedding


@pytest.fixture
def encoder(small, randomise):
    return randomise(ImageEncoder(small)).eval().requires_grad_(False)


@pytest.fixture(params=["plain", "in windows"])
def embed(request, encoder):
    adapters = nn.ModuleList(WindowMean() for _ in encoder.blocks) if request.param == "in windows" else None
    return Embed(encoder, adapters)


def images(batch, *, seed=1):
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace_serves_batches_of_any_size(embed):
    embed(images(1))  # a filled cache must not become a constant of another size
    traced = torch.jit.trace(embed, images(1))
    torch.testing.assert_close(traced(images(3)), embed(images(3)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace_holds_the_tables_as_weights(encoder, randomise):
    traced = torch.jit.trace(Embed(encoder), images(1))
    other = randomise(copy.deepcopy(encoder), seed=1)
    traced.load_state_dict(Embed(other).state_dict())
    torch.testing.assert_close(traced(images(2)), other(images(2)).embedding)


def test_compiled_without_graph_breaks_it_follows_its_weights(encoder, randomise):
    torch._dynamo.reset()
    compiled = torch.compile(Embed(encoder), backend="eager", fullgraph=True)
    for seed in (0, 1):
        randomise(encoder, seed=seed)
        torch.testing.assert_close(compiled(images(2)), encoder(images(2)).embedding)


@pytest.mark.parametrize("adapter", [BlockAdapter(), WindowMean()])
def test_a_compiled_block_learns(encoder, adapter):
    torch._dynamo.reset()
    block, tokens = encoder.blocks[0], torch.randn(2, 7, 6, 24, requires_grad=True)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    found, expected = compiled(tokens, adapter), block(tokens, adapter)
    torch.testing.assert_close(found, expected)
    (found_grad,) = torch.autograd.grad(found.square().sum(), tokens)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), tokens)
    torch.testing.assert_close(found_grad, expected_grad)


@pytest.mark.slow
def test_compiles_with_inductor(encoder):
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(Embed(encoder), fullgraph=True)(images(1))
        torch.testing.assert_close(compiled, encoder(images(1)).embedding, atol=1e-5, rtol=1e-4)


def test_exported_program_gives_the_same_numbers(encoder):
    program = torch.export.export(Embed(encoder), (images(1),))
    torch.testing.assert_close(program.module()(images(1)), encoder(images(1)).embedding)


@pytest.mark.filterwarnings("ignore")
def test_onnx_export_gives_the_same_numbers(encoder, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the test extra brings it")
    program = torch.onnx.export(Embed(encoder), (images(1),), dynamo=True, optimize=False, verbose=False)
    program.save(tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images(1).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), encoder(images(1)).embedding, atol=1e-4, rtol=1e-4)


def test_channels_last_images_change_nothing(embed):
    image = images(2)
    torch.testing.assert_close(embed(image.to(memory_format=torch.channels_last)), embed(image))


def test_the_tokens_of_the_residual_stream_lie_side_by_side(encoder):
    assert encoder.patch_embed(images(2)).is_contiguous()


@pytest.mark.parametrize("adapter", [BlockAdapter, WindowMean])
def test_bfloat16_autocast_learns_and_stays_near_float32(small, randomise, adapter):
    encoder = randomise(ImageEncoder(small))
    adapters = [adapter() for _ in encoder.blocks]
    expected = encoder(images(2), adapters=adapters).embedding
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(images(2), adapters=adapters).embedding
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().mean() < 0.02 * expected.abs().mean()
    half.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_a_bfloat16_encoder_runs_without_autocast(encoder):
    expected = encoder(images(1)).embedding
    half = encoder.to(torch.bfloat16)(images(1).bfloat16()).embedding
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().mean() < 0.03 * expected.abs().mean()


@pytest.mark.parametrize("frozen", [False, True])
def test_activation_checkpointing_meets_a_full_and_an_empty_cache(small, randomise, frozen):
    encoder = randomise(ImageEncoder(small)).requires_grad_(not frozen)
    image = images(1).requires_grad_()
    (expected,) = torch.autograd.grad(encoder(image).embedding.square().sum(), image)
    recomputing = copy.deepcopy(encoder)
    recomputing.activation_checkpointing = True
    for _ in range(2):
        (found,) = torch.autograd.grad(recomputing(image).embedding.square().sum(), image)
        torch.testing.assert_close(found, expected)


def train_one_step(rank: int, folder: str, variant: SAMVariant) -> None:
    """Run in a process of its own: one step of two processes, which start from different weights."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    torch.manual_seed(rank)
    encoder = ImageEncoder(variant)
    for name, parameter in encoder.named_parameters():  # as in parameter-efficient training
        parameter.requires_grad_("mlp" in name)
    encoder(images(1))  # fills the cache before the weights of the first process arrive
    parallel = DistributedDataParallel(Embed(encoder))
    parallel(images(1, seed=rank)).square().sum().backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    torch.save({"weights": encoder.state_dict(), "gradients": gradients}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_one_encoder(small, tmp_path):
    torch.multiprocessing.spawn(train_one_step, (str(tmp_path), small), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    encoder = ImageEncoder(small)
    encoder.load_state_dict(first["weights"])
    for rank in (0, 1):
        (encoder(images(1, seed=rank)).embedding.square().sum() / 2).backward()
    expected = dict(encoder.named_parameters())
    assert first["gradients"]
    for name, gradient in first["gradients"].items():
        assert torch.equal(gradient, second["gradients"][name])
        torch.testing.assert_close(gradient, expected[name].grad, atol=1e-5, rtol=1e-4)
