"""The packed layer gives what the plain layer gives, and notices when its weights change."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from nucsam_monai.networks.sam.kernels import MOST_ROWS, PackedLinear, _mkl_packs, onednn_has

needs_mkl = pytest.mark.skipif(not _mkl_packs(), reason="PyTorch was built without MKL")
needs_onednn = pytest.mark.skipif(
    not onednn_has("_linear_pointwise", torch.bfloat16),
    reason="oneDNN computes no bfloat16 on this processor",
)


def plain(layer: nn.Linear, tokens: Tensor) -> Tensor:
    return functional.linear(tokens, layer.weight, layer.bias)


def packed_layer(tokens: Tensor, outputs: int = 6) -> PackedLinear:
    """Return a layer that has packed its weights for ``tokens``."""
    torch.manual_seed(0)
    layer = PackedLinear(tokens.shape[-1], outputs)
    with torch.no_grad():
        layer(tokens)
        layer(tokens)
    return layer


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=8),
    bias=st.booleans(),
)
def test_any_sequence_of_shapes_gives_the_plain_values(shapes: list[tuple[int, int]], bias: bool) -> None:
    layer = PackedLinear(5, 7, bias=bias)
    with torch.inference_mode():
        for shape in shapes:
            tokens = torch.randn(*shape, 5)
            torch.testing.assert_close(layer(tokens), plain(layer, tokens))


@needs_mkl
def test_packs_for_the_size_that_came_twice_in_a_row() -> None:
    layer = PackedLinear(5, 7)
    with torch.no_grad():
        layer(torch.randn(4, 5))
        assert layer._packed is None
        layer(torch.randn(2, 2, 5))
        assert layer._packed is not None
        assert layer._packed.use.rows == 4


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_packs_under_autocast_with_the_plain_values(bias: bool) -> None:
    layer = PackedLinear(5, 7, bias=bias)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.float32, torch.bfloat16):
            tokens = torch.randn(2, 3, 5, dtype=dtype)
            assert torch.equal(layer(tokens), plain(layer, tokens))
        assert layer._packed is not None
        layer.load_state_dict(PackedLinear(5, 7, bias=bias).state_dict())
        assert torch.equal(layer(tokens), plain(layer, tokens))


@needs_mkl
def test_never_packs_for_types_that_take_turns() -> None:
    layer = PackedLinear(5, 7)
    tokens = torch.randn(4, 5)
    with torch.no_grad():
        for enabled in (True, False, True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                layer(tokens)
    assert layer._packed is None


@needs_mkl
def test_notices_new_weights() -> None:
    tokens = torch.randn(4, 5)
    layer = packed_layer(tokens)
    with torch.no_grad():
        layer.weight.mul_(2)
        for _ in range(3):
            torch.testing.assert_close(layer(tokens), plain(layer, tokens))
        layer.load_state_dict(PackedLinear(5, 6).state_dict())
        for _ in range(3):
            torch.testing.assert_close(layer(tokens), plain(layer, tokens))
        layer.weight = nn.Parameter(torch.randn(6, 5))
        for _ in range(3):
            torch.testing.assert_close(layer(tokens), plain(layer, tokens))


def test_trains_after_inference() -> None:
    tokens = torch.randn(4, 5)
    layer = packed_layer(tokens)
    layer(tokens).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, tokens.sum(0).expand(6, 5))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_gelu_of_the_product(dtype: torch.dtype, tolerance: float) -> None:
    layer, tokens = PackedLinear(5, 7, gelu=True), torch.randn(4, 5)
    expected = functional.gelu(plain(layer, tokens))
    torch.testing.assert_close(layer(tokens), expected)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        for _ in range(3):
            found = layer(tokens)
            assert found.dtype is dtype
            torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


def test_transposed_tokens() -> None:
    tokens = torch.randn(3, 4, 5)
    layer = packed_layer(tokens)
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens.transpose(0, 1)), plain(layer, tokens.transpose(0, 1)))


def test_copies_and_state_hold_the_weights_alone() -> None:
    tokens = torch.randn(4, 5)
    layer = packed_layer(tokens)
    twin = copy.deepcopy(layer)
    assert twin._packed is None
    assert set(layer.state_dict()) == {"weight", "bias"}
    torch.testing.assert_close(twin(tokens), plain(layer, tokens))


@pytest.mark.parametrize("rows", [1, MOST_ROWS + 1])
def test_leaves_sizes_alone_where_it_does_not_pay(rows: int) -> None:
    assert packed_layer(torch.randn(rows, 5))._packed is None


def test_other_types_use_the_plain_layer() -> None:
    tokens = torch.randn(4, 5)
    layer = packed_layer(tokens)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(tokens).dtype is torch.bfloat16
    double = layer.double()
    with torch.no_grad():
        torch.testing.assert_close(double(tokens.double()), plain(double, tokens.double()))
