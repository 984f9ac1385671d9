import pytest
import torch

from nucsam_monai.inferers.test_time_views import SIX_VIEWS

SIDES = [1, 4, 7]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("view", SIX_VIEWS, ids=str)
def test_undoing_a_view_is_the_identity(view, side):
    image = torch.arange(2.0 * side * side).reshape(2, side, side)
    assert torch.equal(view.undo(view.of(image)), image)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("view", SIX_VIEWS, ids=str)
def test_points_go_with_their_pixels(view, side):
    image = torch.arange(float(side * side)).reshape(side, side)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    points = torch.stack([columns, rows], dim=-1).float()
    moved = view.of_points(points, side).long()
    assert torch.equal(view.of(image)[moved[..., 1], moved[..., 0]], image)


@pytest.mark.parametrize("view", SIX_VIEWS, ids=str)
def test_the_centre_stays(view):
    assert view.of_points(torch.tensor([127.5, 127.5]), 256).tolist() == [127.5, 127.5]


def test_one_counter_clockwise_turn():
    turned = SIX_VIEWS[3]
    assert turned.of_points(torch.tensor([255.0, 10.0]), 256).tolist() == [10, 0]
    assert torch.equal(turned.of(torch.tensor([[1, 2], [3, 4]])), torch.tensor([[2, 4], [1, 3]]))


def test_all_views_differ():
    image = torch.arange(9.0).reshape(3, 3)
    views = {tuple(view.of(image).flatten().tolist()) for view in SIX_VIEWS}
    assert len(views) == len(SIX_VIEWS) == 6
