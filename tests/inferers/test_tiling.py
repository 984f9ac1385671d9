import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nucsam_monai.inferers.tiling import SIX_VIEWS, best_visits, plan_tiles, tile_origins, visit_tiles
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles.prompted_merge import slow_origins

SIDES = st.integers(1, 60)
TILES = st.integers(8, 40).flatmap(lambda tile: st.tuples(st.just(tile), st.integers(0, tile // 2)))


@pytest.mark.parametrize(
    ("side", "origins"),
    [(0, [0]), (10, [0]), (256, [0]), (257, [0, 1]), (448, [0, 192]), (449, [0, 192, 193])],
)
def test_the_last_tile_ends_with_the_image(side, origins):
    assert tile_origins(side, 256, 64).tolist() == origins


@given(SIDES, TILES)
def test_origins_equal_the_slow_ones(side, tile):
    assert tile_origins(side, *tile).tolist() == slow_origins(side, *tile)


@pytest.mark.parametrize("arguments", [(-1, 8, 2), (8, 8, 8), (8, 8, -1), (8, 0, 0)])
def test_impossible_tilings_are_refused(arguments):
    with pytest.raises(ConfigurationError, match="overlap"):
        tile_origins(*arguments)


def test_small_images_are_padded_at_the_bottom_and_right():
    image = torch.ones(1, 3, 5, 20)
    tiles = plan_tiles((5, 20), 8, 2).cut(image, np.array([0, 2]))
    assert tiles.shape == (2, 3, 8, 8)
    assert tiles[:, :, :5].min() == 1
    assert tiles[:, :, 5:].max() == 0


def test_tiles_are_cut_where_their_origins_are():
    image = torch.arange(3 * 30 * 40.0).reshape(1, 3, 30, 40)
    tiling = plan_tiles((30, 40), 16, 4)
    every = np.arange(len(tiling))
    for tile, (x, y) in zip(tiling.cut(image, every), tiling.origins(every), strict=True):
        assert torch.equal(tile, image[0, :, y : y + 16, x : x + 16])


@given(SIDES, SIDES, TILES, st.integers(0, 2**32 - 1))
def test_every_tile_gets_the_prompts_in_it(height, width, tile, seed):
    generator = np.random.default_rng(seed)
    pixels = np.stack([generator.integers(0, width, 9), generator.integers(0, height, 9)], axis=1)
    tiling = plan_tiles((height, width), *tile)
    visits = visit_tiles(pixels, tiling)
    expected, margins = [], {}
    for number in range(len(tiling)):
        (left, top), side = tiling.origins(np.array([number]))[0].tolist(), tile[0]
        for prompt, (x, y) in enumerate(pixels.tolist()):
            if left <= x < left + side and top <= y < top + side:
                expected.append((number, prompt))
                inner = [x - left] * (left > 0) + [y - top] * (top > 0)
                inner += [left + side - 1 - x] * (left + side < width)
                inner += [top + side - 1 - y] * (top + side < height)
                margins[number, prompt] = min(inner, default=10**9)
    assert list(zip(*visits, strict=True)) == expected
    best = visits.select(best_visits(visits, pixels, tiling))
    for prompt in range(9):
        own = {number: margin for (number, other), margin in margins.items() if other == prompt}
        widest = max(own.values())
        chosen = best.tiles[best.prompts == prompt].tolist()
        assert chosen == [min(number for number, margin in own.items() if margin == widest)]


def test_visits_of_some_tiles():
    visits = visit_tiles(np.array([[0, 0], [9, 0], [5, 0]]), plan_tiles((4, 10), 6, 2))
    assert visits.of_tiles(np.array([0])).prompts.tolist() == [0, 2]
    assert visits.of_tiles(np.array([1])).prompts.tolist() == [1, 2]
    assert visits.of_tiles(np.array([0, 1])).tiles.tolist() == [0, 0, 1, 1]
    assert len(visits.of_tiles(np.array([], dtype=int))) == 0


VIEWED_SIDES = [1, 4, 7]


@pytest.mark.parametrize("side", VIEWED_SIDES)
@pytest.mark.parametrize("view", SIX_VIEWS, ids=str)
def test_undoing_a_view_is_the_identity(view, side):
    image = torch.arange(2.0 * side * side).reshape(2, side, side)
    assert torch.equal(view.undo(view.of(image)), image)


@pytest.mark.parametrize("side", VIEWED_SIDES)
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
