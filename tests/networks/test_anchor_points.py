import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.networks.prompter import anchor_grid, sample_at


@pytest.mark.parametrize(("height", "width", "step"), [(4, 6, 8), (1, 3, 16), (0, 0, 8)])
def test_anchors_are_the_centres_of_cells(height, width, step):
    grid = anchor_grid(height, width, step)
    assert grid.shape == (height, width, 2)
    assert grid.dtype == torch.float32
    for row in range(height):
        for column in range(width):
            assert grid[row, column].tolist() == [step * (column + 0.5), step * (row + 0.5)]


def ramp(height, width, stride):
    """A map that says at the centre of each cell where in the image that is."""
    x = stride * (torch.arange(width) + 0.5)
    y = stride * (torch.arange(height) + 0.5)
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])[None]


@settings(max_examples=60)
@given(
    st.integers(2, 6),
    st.integers(2, 6),
    st.sampled_from([4, 8, 32]),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5),
)
def test_corrected_samples_are_what_is_at_the_point(height, width, stride, shares):
    # between the centres of the outermost cells
    low = stride / 2
    points = torch.tensor(
        [
            [low + share_x * stride * (width - 1), low + share_y * stride * (height - 1)]
            for share_x, share_y in shares
        ]
    )
    sampled = sample_at(ramp(height, width, stride), points[None, None], stride)
    assert sampled.shape == (1, 2, 1, len(shares))
    torch.testing.assert_close(sampled[0, :, 0].T, points, atol=1e-3, rtol=1e-4)


def test_corrected_samples_beyond_the_centres_are_those_of_the_outermost_cells():
    points = torch.tensor([[[[-50.0, 6.0], [99.0, 99.0], [0.0, 0.0]]]])
    sampled = sample_at(ramp(3, 3, 4), points, 4)[0, :, 0].T
    torch.testing.assert_close(sampled, torch.tensor([[2.0, 6.0], [10.0, 10.0], [2.0, 2.0]]))


def test_released_samples_are_stretched_to_the_border():
    features = ramp(4, 4, 8)
    points = torch.tensor([[[[0.0, 16.0], [32.0, 16.0], [16.0, 8.0], [16.0, 40.0]]]])
    sampled = sample_at(features, points, 8, "released")[0, :, 0].T
    # the centre of the map stays, 0 becomes the first centre, and halfway the shift is half of that
    expected = [[4.0, 16.0], [28.0, 16.0], [16.0, 10.0]]
    torch.testing.assert_close(sampled[:3], torch.tensor(expected))
    assert sampled[3, 1] < 16  # zeros lie beyond the border


@pytest.mark.parametrize("alignment", ["corrected", "released"])
def test_half_precision_keeps_positions(alignment):
    features = torch.rand(1, 8, 64, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    points = torch.tensor([[[[201.3, 77.7], [250.9, 5.1]]]])
    sampled = sample_at(features, points, 4, alignment)
    assert sampled.dtype == torch.bfloat16
    exact = sample_at(features.float(), points, 4, alignment)
    assert torch.equal(sampled, exact.to(torch.bfloat16))


def test_points_learn_through_their_samples():
    points = torch.tensor([[[[7.0, 9.0]]]], requires_grad=True)
    sample_at(ramp(4, 4, 4), points, 4).sum().backward()
    torch.testing.assert_close(points.grad, torch.ones(1, 1, 1, 2))
