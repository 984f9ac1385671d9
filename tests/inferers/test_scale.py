import math

import numpy as np
import pytest
import torch

from nucsam_monai.inferers import ScaledInferer, TileInferer, scale
from nucsam_monai.inferers.scale import Look, _windows, choose_scale, part_to_look_at
from nucsam_monai.transforms import nucleus_distance
from nucsam_monai.utils.errors import ConfigurationError

TILE = 64


def discs(diameter_px, size=(100, 120), gap=1.6):
    """Draw a grid of discs: an image whose two first channels are foreground and distance map."""
    y, x = np.mgrid[: size[0], : size[1]]
    pitch = max(4, round(gap * diameter_px))
    centre = pitch / 2
    inside = np.hypot(y % pitch - centre, x % pitch - centre) <= diameter_px / 2
    instances = np.where(inside, 1 + (y // pitch) * 1000 + x // pitch, 0)
    maps = np.stack([inside, nucleus_distance(instances), np.zeros(size)]).astype(np.float32)
    return torch.from_numpy(maps)[None]


class Reader:
    """A network that reads its maps off the image and counts its tiles."""

    def __init__(self):
        self.tiles = 0

    def __call__(self, tiles):
        self.tiles += len(tiles)
        return tiles[:, :2]


def run(inferer, image, network=None):
    return inferer(image, network or Reader())


def scaled(**options):
    return ScaledInferer(TileInferer(TILE), **options)


def test_without_a_diameter_nothing_is_resized():
    image = discs(5)
    assert torch.equal(run(scaled(diameter=None), image), run(TileInferer(TILE), image))


@pytest.mark.parametrize("size", [(100, 120), (300, 260)])
def test_nuclei_of_a_known_size_take_one_pass_and_small_ones_are_enlarged(size):
    for diameter, is_enlarged in ((20, False), (6, True)):
        network, plain = Reader(), Reader()
        maps = run(scaled(), discs(diameter, size), network)
        run(TileInferer(TILE), discs(diameter, size), plain)
        assert maps.shape == (1, 2, *size)
        looked = 0 if max(size) <= 2 * TILE else 4
        assert (network.tiles > plain.tiles + looked) == is_enlarged
        # maps come back to their places
        assert float((maps[0, 0] - discs(diameter, size)[0, 0]).abs().mean()) < 0.15


def test_the_surest_scale_is_taken_where_the_network_is_unsure():
    asked = []

    def look(scale):
        asked.append(scale)
        return Look(6, 40.0, {0.5: 0.9, 2.0: 0.3, 4.0: 0.1, 0.25: 0.2}[scale], 0.3, 1000.0)

    assert choose_scale(Look(9, 25.0, 0.4, 0.3, 1000.0), look) == 0.5
    assert sorted(asked) == [0.25, 0.5, 2.0, 4.0]
    assert choose_scale(Look(9, 25.0, 0.95, 0.3, 1000.0), look) == 1.0
    assert len(asked) == 4
    assert choose_scale(Look(9, 5.0, 0.4, 0.3, 1000.0), look) == 4.0
    assert choose_scale(Look(9, 10.0, 0.4, 0.3, 1000.0), look) == 2.0


@pytest.mark.parametrize(
    ("scale", "seen"),
    [
        (4.0, Look(7, 16.5, 0.68, 0.09, 16_384.0)),  # certain of the few it finds, on a 16th of the area
        (0.25, Look(1, 112.8, 0.77, 1.0, 10_000.0)),  # everything is one nucleus
        (0.5, Look(3, 48.3, 0.9, 0.4, 10_000.0)),  # too few to believe
        (0.5, Look(60, 40.0, 0.65, 0.1, 262_144.0)),  # certain, because the unsure ones are lost
    ],
)
def test_a_certain_look_that_lost_the_nuclei_is_not_a_gain(scale, seen):
    nothing = Look(0, math.nan, 0.0, 0.0, 1000.0)
    native = Look(120, 25.2, 0.55, 0.23, 262_144.0)
    assert choose_scale(native, lambda asked: seen if asked == scale else nothing) == 1.0


def test_an_image_without_nuclei_is_looked_at_twice():
    nothing, asked = Look(0, math.nan, 0.0, 0.0, 1000.0), []
    assert choose_scale(nothing, lambda scale: asked.append(scale) or nothing) == 1.0
    assert asked == [2.0]
    network, plain = Reader(), Reader()
    empty = torch.zeros(1, 3, TILE, TILE)
    run(scaled(), empty, network)
    for size in (TILE, 2 * TILE):
        run(TileInferer(TILE), torch.zeros(1, 3, size, size), plain)
    assert network.tiles == plain.tiles


def test_the_maps_of_a_look_are_kept(monkeypatch):
    monkeypatch.setattr(scale, "choose_scale", lambda native, look: (look(2.0), 2.0)[1])
    image, network, plain = discs(20, (TILE, TILE)), Reader(), Reader()
    run(scaled(), image, network)
    for size in (TILE, 2 * TILE):
        run(TileInferer(TILE), torch.zeros(1, 3, size, size), plain)
    assert network.tiles == plain.tiles


def test_nuclei_that_only_an_enlarged_image_shows_are_found():
    nothing, shown = Look(0, math.nan, 0.0, 0.0, 10_000.0), Look(38, 5.9, 0.58, 0.14, 10_000.0)
    assert choose_scale(nothing, lambda scale: shown if scale == 2.0 else nothing) == 2.0


@pytest.mark.parametrize("size", [(100, 120), (300, 260)])
def test_images_without_nuclei_stay_as_they_are(size):
    image = torch.zeros(1, 3, *size)
    assert torch.equal(run(scaled(), image), torch.zeros(1, 2, *size))


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"diameter": 5}, 4.0),
        ({"diameter": 10.0}, 2.0),
        ({"diameter": 20}, 1.0),
        ({"diameter": 80}, 0.25),
        ({"diameter": None, "mpp": 0.5}, 2.0),
        ({"mpp": 0.25}, 1.0),
    ],
)
def test_the_users_setting_takes_precedence(options, factor):
    seen = []

    class Tiles(TileInferer):
        def __call__(self, inputs, network, *args, **kwargs):
            seen.append(inputs.shape[-2:])
            return super().__call__(inputs, network, *args, **kwargs)

    maps = ScaledInferer(Tiles(TILE), **options)(discs(20), Reader())
    assert maps.shape == (1, 2, 100, 120)
    assert seen == [(round(100 * factor), round(120 * factor))]


def test_points_move_with_the_image():
    found = {}

    class Tiles(TileInferer):
        def __call__(self, inputs, network, *args, points=None, **kwargs):
            found["points"] = points
            return super().__call__(inputs, network, *args, **kwargs)

    points = (torch.tensor([[[9.5, 19.5]]]), torch.ones(1, 1))
    ScaledInferer(Tiles(TILE), diameter=10)(discs(10), Reader(), points=points)
    assert found["points"][0].tolist() == [[[19.5, 39.5]]]


def test_foreground_alone_says_nothing_of_the_size():
    image = discs(5)
    maps = scaled()(image, lambda tiles: tiles[:, :1])
    assert torch.equal(maps, TileInferer(TILE)(image, lambda tiles: tiles[:, :1]))


@pytest.mark.parametrize(
    "options", [{"diameter": 0}, {"diameter": "big"}, {"diameter": True}, {"mpp": -1}, {"mpp": math.inf}]
)
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ConfigurationError, match="expected"):
        scaled(**options)


def test_two_ways_to_say_the_size_are_refused():
    with pytest.raises(ConfigurationError, match="expected one of them"):
        scaled(diameter=20, mpp=0.5)


@pytest.mark.parametrize("size", [(120, 97), (95, 40), (300, 96)])
def test_a_part_of_a_large_image_has_its_windows(size):
    tile = 8
    image = np.random.default_rng(0).integers(0, 255, (*size, 3))
    part = part_to_look_at(image, tile)
    assert part.shape[:2] == tuple(min(side, 12 * tile) for side in size)
    for side in (tile // 4, tile // 2, tile, 2 * tile, 4 * tile):
        windows = [_windows(torch.from_numpy(one).permute(2, 0, 1)[None], side) for one in (image, part)]
        assert all((one == other).all() for one, other in zip(*windows, strict=True))


def test_the_scale_is_that_of_the_inference():
    inferer = ScaledInferer(TileInferer(TILE))
    image = discs(5, (200, 150))
    scale_of = inferer.scale_of(image, Reader())
    assert scale_of == pytest.approx(4.0, rel=0.2)
    assert (
        inferer(image, Reader()) == ScaledInferer(TileInferer(TILE), 20.0 / scale_of)(image, Reader())
    ).all()
    assert ScaledInferer(TileInferer(TILE), None).scale_of(image, Reader()) == 1.0
