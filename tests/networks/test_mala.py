import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nucsam_monai.networks import fine_tuning
from nucsam_monai.networks.fine_tuning import (
    MALA,
    BlockMALA,
    MALAOptions,
    build_adapters,
    convolve_dynamically,
    freeze_for,
    nest_kernels,
)
from nucsam_monai.networks.sam import SAM, SAM_VARIANTS
from nucsam_monai.utils.errors import ConfigurationError
from tests.networks.conftest import MICRO
from tests.oracles import dynamic_convolution as oracle

WINDOWED = dataclasses.replace(MICRO, window=5)  # a grid of 4 x 4 tokens is padded to one window


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def randomised(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return module


@pytest.fixture(params=["by matrix", "by shifts"])
def both_ways(request, monkeypatch):
    monkeypatch.setattr(fine_tuning, "MATRIX_CELLS", 10**6 if request.param == "by matrix" else 0)


@pytest.mark.parametrize(
    ("width", "rank", "parameters"),
    [
        (768, 64, 154_259),
        (1024, 64, 188_307),
        (1280, 64, 222_355),
        (768, 16, 40_739),
        (768, 32, 78_067),
        (768, 128, 312_787),
    ],
)
def test_mala_has_the_published_number_of_parameters(width, rank, parameters):
    with torch.device("meta"):
        assert count(MALA(width, MALAOptions(rank=rank))) == parameters


def test_there_are_two_in_every_block():
    with torch.device("meta"):
        adapters = build_adapters("mala", SAM_VARIANTS["vit_b"])
    assert count(adapters) == 24 * 154_259


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("size", [(4, 4), (4, 9), (14, 14), (16, 16), (17, 18)])
@pytest.mark.parametrize("side", [3, 7])
def test_convolution_equals_the_unfolded_one_with_its_gradients(size, side):
    torch.manual_seed(0)
    cells = torch.randn(2, *size, 3, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(2, *size, side * side, dtype=torch.float64, requires_grad=True)
    found, expected = convolve_dynamically(cells, kernels), oracle.convolve(cells, kernels)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    gradients = (torch.autograd.grad(result, (cells, kernels), direction) for result in (found, expected))
    torch.testing.assert_close(*gradients)


@given(st.integers(4, 9), st.integers(4, 9), st.integers(0, 2**16))
def test_nested_kernels_act_like_one_after_another(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randn(1, height, width, 2, generator=generator, dtype=torch.float64)
    kernels = [
        torch.randn(1, height, width, side * side, generator=generator, dtype=torch.float64)
        for side in (3, 5, 7)
    ]
    expected = sum(oracle.convolve(cells, kernel) for kernel in kernels)
    torch.testing.assert_close(convolve_dynamically(cells, nest_kernels(kernels)), expected)


@pytest.mark.usefixtures("both_ways")
def test_mala_equals_its_equations_with_all_gradients():
    torch.manual_seed(0)
    adapter = randomised(MALA(12, MALAOptions(rank=5))).eval().double()
    tokens = torch.randn(3, 5, 7, 12, dtype=torch.float64, requires_grad=True)
    found, expected = adapter(tokens), oracle.mala(adapter, tokens)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    inputs = (tokens, *adapter.parameters())
    gradients = (torch.autograd.grad(result, inputs, direction) for result in (found, expected))
    torch.testing.assert_close(*gradients)


def test_static_kernels_are_the_same_at_every_token():
    torch.manual_seed(0)
    adapter = randomised(MALA(8, MALAOptions(rank=2, kernel="static"))).eval()
    tokens = torch.randn(1, 9, 9, 8)
    local = adapter._local(tokens[..., :2])
    expected = 0
    for conv, side in zip(adapter.depthwise, (3, 5, 7), strict=True):
        kernels = conv.weight[:, 0].flatten(1)  # (2, k * k), one for each channel
        each = [
            oracle.convolve(tokens[..., channel : channel + 1], kernel.expand(1, 9, 9, side * side))
            for channel, kernel in enumerate(kernels)
        ]
        expected = expected + torch.cat(each, dim=-1) + conv.bias
    torch.testing.assert_close(local, expected / 3)


def test_without_kernels_no_token_sees_another():
    torch.manual_seed(0)
    adapter = randomised(MALA(8, MALAOptions(rank=2, kernel="none"))).eval()
    tokens = torch.randn(1, 5, 5, 8)
    torch.testing.assert_close(adapter(tokens)[:, 2:3, 3:4], adapter(tokens[:, 2:3, 3:4]))


@pytest.mark.parametrize("kernel", ["learnable", "static", "none"])
def test_encoder_starts_from_plain_sam_and_both_adapters_change_it(images, kernel):
    torch.manual_seed(0)
    encoder = SAM(WINDOWED, (64, 64)).image_encoder
    adapters = build_adapters("mala", WINDOWED, MALAOptions(rank=3, kernel=kernel, dropout=0.0))
    plain = encoder(images).embedding
    torch.testing.assert_close(encoder(images, adapters=adapters).embedding, plain)
    for part in ("attention", "block"):
        for block in (0, 1):  # windowed, global
            changed = copy.deepcopy(adapters)
            randomised(getattr(changed[block], part))
            assert not torch.allclose(encoder(images, adapters=changed).embedding, plain)


def test_first_adapter_sees_windows_with_their_padding(images):
    torch.manual_seed(0)
    adapters = build_adapters("mala", WINDOWED, MALAOptions(rank=3))
    shapes = []
    for adapter in adapters:
        adapter.attention.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    SAM(WINDOWED, (64, 64)).image_encoder(images, adapters=adapters)
    assert shapes == [(2, 5, 5, 32), (2, 4, 4, 32)] * 2


def test_only_adapters_and_decoder_learn():
    sam = SAM(WINDOWED, (64, 64))
    freeze_for("mala", sam)
    trained = {name for name, parameter in sam.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in sam.named_parameters() if name.startswith("mask_decoder.")}


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    adapter = randomised(MALA(8, MALAOptions(rank=4, dropout=0.5)))
    tokens = torch.randn(1, 5, 5, 8)
    assert not torch.equal(adapter(tokens), adapter(tokens))
    adapter.eval()
    assert torch.equal(adapter(tokens), adapter(tokens))


def test_what_inference_keeps_serves_training_too():
    fine_tuning._neighbours.cache_clear()
    adapter = randomised(MALA(8, MALAOptions(rank=4)))
    tokens = torch.randn(1, 6, 6, 8)
    with torch.inference_mode():
        adapter(tokens)
    adapter(tokens).sum().backward()
    assert adapter.predict.weight.grad is not None


def test_training_in_half_precision_keeps_the_type():
    adapter = BlockMALA(8, MALAOptions(rank=4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        changed = adapter.windows(torch.randn(2, 5, 5, 8))
    assert changed.isfinite().all()


def test_wrong_values_and_small_windows_are_refused():
    with pytest.raises(ConfigurationError, match="MALA kernel 'fixed': expected one of"):
        MALA(8, MALAOptions(kernel="fixed"))
    with pytest.raises(ConfigurationError, match="MALA init 'zero': expected 'zero_last'"):
        MALA(8, MALAOptions(init="zero"))
    with pytest.raises(ConfigurationError, match="MALA rank 0: expected 1 or more"):
        MALA(8, MALAOptions(rank=0))
    with pytest.raises(ConfigurationError, match="found a map of 3 x 5 cells, expected sides of at least 4"):
        MALA(8, MALAOptions(rank=2))(torch.zeros(1, 3, 5, 8))
