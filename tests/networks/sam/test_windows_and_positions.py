import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.networks.sam.relative_position import (
    fold_relative_positions,
    relative_position_bias,
    relative_position_terms,
    relative_positions,
    resize_position_grid,
)
from nucsam_monai.networks.sam.windows import merge_windows, split_windows

sides = st.integers(1, 9)


@settings(deadline=None, max_examples=40)
@given(batch=st.integers(1, 3), height=sides, width=sides, side=sides)
def test_merging_undoes_splitting(batch, height, width, side):
    grid = torch.rand(batch, height, width, 2)
    windows = split_windows(grid, side, fill=torch.tensor([7.0, 8.0]))
    assert windows.shape[1:] == (side, side, 2)
    padded = windows.flatten(0, 2).tolist().count([7.0, 8.0])
    assert padded == len(windows) * side * side - batch * height * width
    assert torch.equal(merge_windows(windows, (height, width)), grid)


def test_windows_are_neighbourhoods_in_row_major_order():
    grid = torch.arange(16.0).reshape(1, 4, 4, 1)
    windows = split_windows(grid, 2, fill=torch.zeros(1))
    assert windows[1].flatten().tolist() == [2, 3, 6, 7]
    assert windows[2].flatten().tolist() == [8, 9, 12, 13]


@settings(deadline=None, max_examples=15)
@given(height=st.integers(1, 4), width=st.integers(1, 4))
def test_bias_equals_the_formula_written_as_loops(height, width):
    query = torch.rand(2, 3, height * width, 5)
    table_h, table_w = torch.rand(2 * height - 1, 5), torch.rand(2 * width - 1, 5)
    bias = relative_position_bias(*relative_position_terms(query, table_h, table_w, (height, width)))
    for i in range(height):
        for j in range(width):
            for k in range(height):
                for m in range(width):
                    q = query[:, :, i * width + j]
                    expected = q @ table_h[i - k + height - 1] + q @ table_w[j - m + width - 1]
                    torch.testing.assert_close(bias[:, :, i * width + j, k * width + m], expected)


@settings(deadline=None, max_examples=20)
@given(height=st.integers(1, 6), width=st.integers(1, 6))
def test_folded_positions_give_the_logits_of_the_bias(height, width):
    query, key, value = torch.rand(3, 2, 3, height * width, 5)
    terms = relative_position_terms(
        query, torch.rand(2 * height - 1, 5), torch.rand(2 * width - 1, 5), (height, width)
    )
    wide_query, wide_key, wide_value = fold_relative_positions(query, key, value, *terms)
    expected = query @ key.transpose(-1, -2) * 5**-0.5 + relative_position_bias(*terms)
    torch.testing.assert_close(wide_query @ wide_key.transpose(-1, -2), expected)
    assert torch.equal(wide_value[..., :5], value)
    assert not wide_value[..., 5:].any()


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
