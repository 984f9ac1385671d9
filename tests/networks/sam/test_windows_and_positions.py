import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.networks.sam import kernels
from nucsam_monai.networks.sam.encoder import (
    merge_windows,
    pad_to_windows,
    relative_positions,
    resize_position_grid,
    split_windows,
    window_spans,
)
from nucsam_monai.networks.sam.kernels import folded_attention, padding_term, relative_position_terms
from tests.oracles.positioned_attention import attend_in_padded_window

sides = st.integers(1, 9)


@settings(max_examples=40)
@given(batch=st.integers(1, 3), height=sides, width=sides, side=sides)
def test_merging_undoes_splitting(batch, height, width, side):
    grid = torch.rand(batch, height, width, 2)
    padded = pad_to_windows(grid, side, fill=torch.tensor([7.0, 8.0]))
    windows = split_windows(padded, side, side)
    assert windows.shape[-3:] == (side, side, 2)
    filled = windows.reshape(-1, 2).tolist().count([7.0, 8.0])
    assert filled == windows.numel() // 2 - batch * height * width
    assert torch.equal(merge_windows(windows)[:, :height, :width], grid)


def test_windows_are_neighbourhoods_in_row_major_order():
    grid = torch.arange(32.0).reshape(1, 4, 8, 1)
    windows = split_windows(grid, 2, 4)
    assert windows.shape == (1, 2, 2, 2, 4, 1)
    assert windows[0, 0, 1].flatten().tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    assert windows[0, 1, 0].flatten().tolist() == [16, 17, 18, 19, 24, 25, 26, 27]
    assert windows.data_ptr() == grid.data_ptr()


@settings(max_examples=60)
@given(length=st.integers(1, 70), side=st.integers(1, 20))
def test_spans_are_the_windows_of_equal_extent(length, side):
    extents = [min(side, length - start) for start in range(0, length, side)]
    spans = window_spans(length, side)
    assert [e for start, stop, e in spans for _ in range(start, stop, e)] == extents
    assert len(spans) == len(set(extents))


@pytest.mark.parametrize(("height", "width"), [(3, 2), (1, 4)])
def test_terms_equal_the_formula_written_as_loops(height, width):
    query = torch.rand(2, 3, height, width, 5)
    table_h, table_w = torch.rand(2 * height - 1, 5), torch.rand(2 * width - 1, 5)
    along_h, along_w = relative_position_terms(
        query, relative_positions(table_h, height), relative_positions(table_w, width)
    )
    for i in range(height):
        for j in range(width):
            q = query[:, :, i, j]
            for k in range(height):
                torch.testing.assert_close(along_h[:, :, i, j, k], q @ table_h[i - k + height - 1])
            for m in range(width):
                torch.testing.assert_close(along_w[:, :, i, j, m], q @ table_w[j - m + width - 1])


@settings(max_examples=30)
@given(height=st.integers(1, 4), width=st.integers(1, 4), scale=st.sampled_from([0.1, 30.0, 300.0]))
def test_padding_term_is_the_sum_over_the_padded_cells(height, width, scale):
    rows, columns = 4, 5
    along_h = torch.randn(2, height, width, rows) * scale
    along_w = torch.randn(2, height, width, columns) * scale
    cells = along_h[..., :, None] + along_w[..., None, :]
    cells[..., :height, :width] = -torch.inf
    expected = cells.flatten(-2).logsumexp(-1, keepdim=True)
    torch.testing.assert_close(padding_term(along_h, along_w), expected)


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize(("height", "width"), [(4, 3), (4, 2), (1, 3), (3, 2), (1, 1)])
def test_folded_attention_equals_the_padded_window_query_by_query(height, width, with_gradients):
    torch.manual_seed(0)
    table_h, table_w = torch.randn(7, 5), torch.randn(5, 5)  # a window of 4 x 3
    padding, qkv = torch.randn(30), torch.randn(2, 2, height, width, 30)
    positions = relative_positions(table_h, 4), relative_positions(table_w, 3)
    cut = (height, width) != (4, 3)
    with torch.set_grad_enabled(with_gradients):
        found = folded_attention(qkv, 2, *positions, padding=padding if cut else None)
    for window, attended in zip(qkv.flatten(0, 1), found.flatten(0, 1), strict=True):
        expected = attend_in_padded_window(window, 2, table_h, table_w, padding)
        torch.testing.assert_close(attended, expected)


@pytest.mark.parametrize("width", [3, 40])
def test_attention_in_pieces_equals_attention_at_once(width, monkeypatch):
    torch.manual_seed(0)
    qkv, positions = torch.randn(2, 5, width, 3 * 2 * 4), (torch.randn(5, 5, 4), torch.randn(width, width, 4))
    at_once = folded_attention(qkv.requires_grad_(), 2, *positions)
    for piece in (1, 3 * (5 * width) ** 2):
        monkeypatch.setattr(kernels, "_PIECE", piece)
        monkeypatch.setattr(kernels, "_FEWEST_QUERIES", 7)
        with torch.no_grad():
            torch.testing.assert_close(folded_attention(qkv, 2, *positions), at_once)


@pytest.mark.parametrize(("height", "width"), [(4, 3), (4, 2), (20, 16)])
def test_folded_attention_in_bfloat16_has_the_values_and_gradients_of_float32(height, width):
    torch.manual_seed(0)
    table_h, table_w = torch.randn(2 * max(height, 4) - 1, 5), torch.randn(2 * max(width, 3) - 1, 5)
    positions = relative_positions(table_h, max(height, 4)), relative_positions(table_w, max(width, 3))
    qkv, padding, weights = (
        torch.randn(2, height, width, 30),
        torch.randn(30),
        torch.randn(2, height, width, 10),
    )

    def values_and_gradients(dtype):
        inputs = [one.to(dtype).requires_grad_() for one in (qkv, *positions, padding)]
        cut = height < 4 or width < 3
        found = folded_attention(inputs[0], 2, *inputs[1:3], padding=inputs[3] if cut else None)
        gradients = torch.autograd.grad((found * weights.to(dtype)).sum(), inputs[: 3 + cut])
        return [one.float() for one in (found, *gradients)]

    for low, exact in zip(*map(values_and_gradients, (torch.bfloat16, torch.float32)), strict=True):
        torch.testing.assert_close(low, exact, atol=0.03 * float(exact.abs().max()), rtol=0)


def test_folded_attention_makes_no_tensor_of_all_pairs():
    side = 24
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(
                t.numel() for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)
            )
            return result

    positions = relative_positions(torch.rand(2 * side - 1, 4), side)
    qkv = torch.rand(1, side, side, 12, requires_grad=True)
    with Sizes():
        folded_attention(qkv, 1, positions, positions).sum().backward()
    assert max(sizes) < side**4 // 4


def test_table_of_the_right_length_is_used_bit_by_bit():
    table = torch.rand(27, 4)
    positions = relative_positions(table, 14)
    assert torch.equal(positions[13], table.flip(0)[:14])
    assert torch.equal(positions[0], table.flip(0)[13:])


def test_table_of_another_length_is_interpolated_linearly():
    table = torch.arange(127.0)[:, None]  # linear in the row, so that interpolation has a closed form
    positions = relative_positions(table, 16)
    expected = (torch.arange(31) + 0.5) * 127 / 31 - 0.5
    torch.testing.assert_close(positions[15, :, 0], expected.flip(0)[:16])


def test_position_grid_keeps_its_own_size_and_changes_to_others():
    table = torch.rand(1, 6, 6, 3)
    assert resize_position_grid(table, (6, 6)) is table
    assert resize_position_grid(table, (3, 9)).shape == (1, 3, 9, 3)
    bilinear = resize_position_grid(table, (3, 3), mode="bilinear")
    torch.testing.assert_close(bilinear[0, 0, 0], table[0, :2, :2].mean((0, 1)))
