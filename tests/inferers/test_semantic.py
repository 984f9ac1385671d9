import logging
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from nucsam_monai.inferers import (
    ResizeInferer,
    SemanticInferer,
    TileInferer,
    otsu_foreground,
    spatial_inferer,
)
from nucsam_monai.utils.errors import ConfigurationError, ImageReadError
from tests.oracles.otsu_slow import slow_otsu_threshold

TILE = 8
SIDES = st.integers(1, 21)  # smaller than, equal to and larger than a tile
OVERLAPS = st.sampled_from([0.0, 0.25, 0.5])


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pixelwise(images):
    """Two channels, each a function of the pixel alone."""
    return torch.cat([images[:, :1] * 0.5, images.mean(dim=1, keepdim=True) ** 2], dim=1)


def draw_points(tiles, points):
    """Mark the pixel of every foreground point; a point beside its tile is an error."""
    drawn = torch.zeros(len(tiles), 1, *tiles.shape[-2:])
    for canvas, coordinates, labels in zip(drawn, *points, strict=True):
        for (x, y), label in zip(coordinates.tolist(), labels.tolist(), strict=True):
            if label == 1:
                assert 0 <= x < canvas.shape[-1]
                assert 0 <= y < canvas.shape[-2]
                canvas[0, int(y), int(x)] = 1
    return drawn


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(1, 2), OVERLAPS, st.integers(1, 3))
def test_tiling_a_pixelwise_network_changes_nothing(height, width, images, overlap, tiles_per_batch):
    inputs = noise(images, 3, height, width)
    result = TileInferer(TILE, overlap, tiles_per_batch)(inputs, pixelwise)
    assert result.shape == (images, 2, height, width)
    torch.testing.assert_close(result, pixelwise(inputs), rtol=0, atol=1e-6)


def test_small_images_are_padded_at_bottom_and_right_with_the_mean_colour():
    seen = []
    TileInferer(TILE)(torch.ones(1, 3, 3, 5), lambda tiles: seen.append(tiles) or tiles[:, :1] + 0)
    assert [tuple(tiles.shape) for tiles in seen] == [(1, 3, TILE, TILE)]
    assert seen[0][..., :3, :5].min() == 1
    assert seen[0].sum() == 3 * 3 * 5


@settings(max_examples=60, deadline=None)
@given(st.data(), SIDES, SIDES, st.integers(1, 2), OVERLAPS)
def test_points_reach_exactly_the_tiles_they_lie_in(data, height, width, images, overlap):
    pixel = st.tuples(st.integers(0, width - 1), st.integers(0, height - 1), st.sampled_from([1, -1]))
    drawn = data.draw(st.lists(st.lists(pixel, min_size=3, max_size=3), min_size=images, max_size=images))
    table = torch.tensor(drawn)
    coordinates, labels = table[..., :2].float(), table[..., 2]
    expected = torch.zeros(images, 1, height, width)
    for image, points in enumerate(drawn):
        for x, y, label in points:
            if label == 1:
                expected[image, 0, y, x] = 1
    inputs = noise(images, 3, height, width)
    result = TileInferer(TILE, overlap)(inputs, draw_points, points=(coordinates, labels))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert labels.tolist() == [[label for *_, label in points] for points in drawn]


def test_further_arguments_reach_the_network():
    def network(tiles, offset, *, factor):
        return tiles[:, :1] * factor + offset

    inputs = noise(1, 3, 10, 12)
    result = TileInferer(TILE)(inputs, network, 1.0, factor=2.0)
    torch.testing.assert_close(result, inputs[:, :1] * 2 + 1)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 30), (40, 12), (1, 1)])
def test_whole_image_is_stretched_and_the_result_put_back(height, width):
    seen = []

    def network(images):
        seen.append(tuple(images.shape))
        return images[:, :1]

    rows = torch.linspace(0, 1, height).view(1, 1, height, 1).expand(1, 3, height, width).clone()
    result = ResizeInferer(16)(rows, network)
    assert seen == [(1, 3, 16, 16)]
    assert result.shape == (1, 1, height, width)
    assert (result[..., 1:, :] > result[..., :-1, :]).all()  # still grows from row to row
    torch.testing.assert_close(result, result[..., :1].expand_as(result))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 16), st.integers(1, 16))
def test_points_are_stretched_with_the_image(data, height, width):
    side = 32
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))

    def network(images, points):
        assert points[1].tolist() == [[1]]
        (px, py), steps = points[0][0, 0], torch.arange(side)
        return -((steps[:, None] - py) ** 2 + (steps[None] - px) ** 2).view(1, 1, side, side)

    points = (torch.tensor([[[x, y]]], dtype=torch.float32), torch.tensor([[1]]))
    result = ResizeInferer(side)(torch.zeros(1, 3, height, width), network, points=points)
    assert divmod(int(result.flatten().argmax()), width) == (y, x)
    assert points[0].tolist() == [[[x, y]]]


class Branches:
    """A network whose logits differ between its domains; it counts who was asked."""

    logits: ClassVar = {"a": -1.0, "b": 0.5, "monuseg": 2.0, None: 3.0}

    def __init__(self):
        self.asked = Counter()

    def __call__(self, tiles, *, domain=None):
        self.asked[domain] += 1
        return torch.full_like(tiles[:, :1], self.logits[domain])


def answer(inferer, domain=None):
    network = Branches()
    result = inferer(noise(1, 3, 5, 9), network, domain=domain)
    assert result.dtype == torch.float32
    assert result.shape == (1, 1, 5, 9)
    torch.testing.assert_close(result, result[:, :, :1, :1].expand_as(result))
    assert set(network.asked.values()) == {1}
    return set(network.asked), result[0, 0, 0, 0].item()


def mean_of(*names):
    return pytest.approx(np.mean([1 / (1 + np.exp(-Branches.logits[name])) for name in names]), abs=1e-6)


@pytest.mark.parametrize("spatial", [TileInferer(TILE), ResizeInferer(TILE)])
def test_an_image_is_answered_by_the_branch_of_its_domain(spatial):
    inferer = SemanticInferer(spatial, ["a", "b", "monuseg"], precision="fp32")
    for name in ("a", "b", "monuseg"):
        assert answer(inferer, name) == ({name}, mean_of(name))
    assert answer(inferer, "mean") == ({"a", "b", "monuseg"}, mean_of("a", "b", "monuseg"))


@pytest.mark.parametrize("domain", [None, "unheard-of"])
@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"domains": ["a", "monuseg"]}, {"monuseg"}),
        ({"domains": ["a", "b"]}, {"a", "b"}),
        ({"domains": ["a", "monuseg"], "unseen_domain": "a"}, {"a"}),
        ({"domains": ["a", "monuseg"], "unseen_domain": "mean"}, {"a", "monuseg"}),
        ({"domains": ["a", "b", "monuseg"], "unseen_domain": "mean", "mean_domains": ["b", "a"]}, {"a", "b"}),
        ({"domains": None}, {None}),
    ],
)
def test_unknown_domains(domain, options, asked):
    inferer = SemanticInferer(TileInferer(TILE), precision="fp32", **options)
    assert answer(inferer, domain) == (asked, mean_of(*asked))


def test_the_branch_that_stands_in_is_named_once(caplog):
    inferer = SemanticInferer(TileInferer(TILE), ["a", "monuseg"], precision="fp32")
    with caplog.at_level(logging.WARNING):
        for domain in ("kumar", "kumar", "a", None, "mean"):
            answer(inferer, domain)
    assert [record.getMessage() for record in caplog.records] == [
        "domain 'kumar' was not trained; 'monuseg' is used instead."
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"domains": ["a"], "unseen_domain": "b"},
        {"domains": ["a"], "mean_domains": ["a", "b"]},
        {"domains": ["a"], "mean_domains": ["mean"]},
        {"domains": None, "unseen_domain": "a"},
        {"domains": None, "mean_domains": ["a"]},
        {"domains": []},
    ],
)
def test_domains_that_were_not_trained_are_refused(options):
    with pytest.raises(ConfigurationError, match="domain"):
        SemanticInferer(TileInferer(TILE), **options)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_probability_is_float32_in_every_precision(precision):
    layer = torch.nn.Conv2d(3, 1, 3, padding=1)
    inputs = noise(1, 3, 9, 17)
    with torch.no_grad():
        result = SemanticInferer(TileInferer(32), precision=precision)(inputs, layer)
        expected = torch.sigmoid(layer(inputs))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-2)


def test_points_pass_through_despite_metadata():
    def network(tiles, domain, points):
        assert domain == "a"
        return draw_points(tiles, points) * 20 - 10

    points = (torch.tensor([[[13.0, 2.0]]]), torch.tensor([[1]]))
    inputs = MetaTensor(noise(1, 3, 6, 17))
    inferer = SemanticInferer(TileInferer(TILE), ["a"], precision="fp32")
    result = inferer(inputs, network, domain="a", points=points)
    assert torch.nonzero(torch.as_tensor(result) > 0.5).tolist() == [[0, 0, 2, 13]]


def test_images_are_fitted_by_tiles_or_by_stretching():
    tiles = spatial_inferer("tile", TILE, overlap=0.5)
    assert isinstance(tiles, TileInferer)
    assert (tiles.tile_px, tiles.tiles.overlap) == (TILE, 0.5)
    stretched = spatial_inferer("resize", TILE)
    assert isinstance(stretched, ResizeInferer)
    assert stretched.image_size == TILE
    with pytest.raises(ConfigurationError, match="fit 'crop': expected one of tile, resize"):
        spatial_inferer("crop", TILE)


def grey_image(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(("nuclei", "ground"), [(40, 220), (220, 40)])
def test_finds_dark_and_bright_nuclei(nuclei: int, ground: int) -> None:
    truth = np.zeros((20, 30), dtype=bool)
    truth[4:9, 5:12] = True
    assert np.array_equal(otsu_foreground(grey_image(np.where(truth, nuclei, ground))), truth)


def test_uses_luminance_rather_than_one_channel() -> None:
    image = np.full((10, 10, 3), 200, dtype=np.uint8)
    image[2:5, 2:5] = (200, 20, 200)  # green weighs most
    assert otsu_foreground(image)[2:5, 2:5].all()
    assert otsu_foreground(image).sum() == 9


@given(st.integers(0, 2**32 - 1), st.integers(2, 200))
@settings(max_examples=25, deadline=None)
def test_agrees_with_the_exhaustive_search(seed: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    grey = rng.integers(20, 21 + spread, (9, 11))
    bright = grey > slow_otsu_threshold(grey)
    expected = bright if bright.mean() <= 0.5 else ~bright
    assert np.array_equal(otsu_foreground(grey_image(grey)), expected)


@pytest.mark.parametrize("shape", [(5, 7, 3), (0, 7, 3)])
def test_one_grey_value_has_no_foreground(shape: tuple[int, int, int]) -> None:
    found = otsu_foreground(np.full(shape, 90, dtype=np.uint8))
    assert found.shape == shape[:2]
    assert not found.any()


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_rejects_what_is_not_rgb_uint8(image: np.ndarray) -> None:
    with pytest.raises(ImageReadError, match="expected"):
        otsu_foreground(image)
