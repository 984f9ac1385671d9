import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import hed2rgb, rgb2hed

from nucsam_monai.transforms import (
    NucleusDistanced,
    RandColorJitterd,
    RandDegraded,
    RandStainJitterd,
    RandZoomCropd,
    microscopy_augmentation,
)

SEEDS = st.integers(0, 2**31 - 1)
SIZE = 64


def crop(size=SIZE, zoom=1.0, prob=1.0):
    """Build a crop of one magnification."""
    interpolation = ("image", "labels", "map")
    return RandZoomCropd(("image", "instances", "depth"), size, interpolation, (zoom, zoom), prob)


def coordinates(height, width):
    """Return an item whose keys say where each pixel is: (x, y) images, and labels ``1 + y * width + x``."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    places = torch.from_numpy(np.stack([x, y]))
    labels = torch.from_numpy(1 + (y * width + x).astype(np.int32))[None]
    return {"image": places, "instances": labels, "depth": places.clone(), "id": "a"}


@pytest.mark.parametrize("size", [64, 96])
def test_labels_stay_on_their_image_at_every_zoom(size):
    item = coordinates(480, 470)
    for side in range(size // 3, 3 * size):
        result = crop(size, size / side).set_random_state(side)(item)
        ids = result["instances"][0].numpy() - 1
        labelled = np.stack([ids % 470, ids // 470]).astype(float)
        inside = (slice(None), *[slice(2, -2)] * 2)  # interpolation continues the outermost pixels
        for key in ("image", "depth"):
            moved = (labelled - result[key].numpy())[inside] * size / side  # in pixels of the crop
            assert np.abs(moved).max() <= 0.5 * size / side + 0.01, side
            assert np.abs(moved.mean(axis=(1, 2))).max() < 0.01, side


@pytest.mark.parametrize("side", range(40, 200, 7))
def test_the_centroid_of_a_nucleus_is_that_of_its_drawing(side):
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    nucleus = np.hypot(y, 1.3 * x) <= side / 4
    item = {
        "image": torch.from_numpy(np.repeat(200 * nucleus[None], 3, axis=0).astype(np.uint8)),
        "instances": torch.from_numpy(7 * nucleus[None].astype(np.int32)),
        "depth": torch.from_numpy(nucleus[None].astype(np.float32)),
    }
    result = crop(SIZE, SIZE / side).set_random_state(0)(item)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    centroids = []
    for key in ("image", "instances", "depth"):
        weight = result[key][0].numpy().astype(float)
        centroids.append([(rows * weight).sum() / weight.sum(), (columns * weight).sum() / weight.sum()])
    assert np.ptp(centroids, axis=0).max() < 0.01
    assert set(result["instances"].unique().tolist()) == {0, 7}
    area = np.count_nonzero(result["instances"]) / np.count_nonzero(nucleus)
    assert area == pytest.approx((SIZE / side) ** 2, rel=0.03)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0.4, 2.5), st.integers(1, 150), st.integers(1, 150))
def test_crops_have_one_size_and_follow_from_the_seed(seed, zoom, height, width):
    item = coordinates(height, width)
    transform = crop(32, zoom)
    first, second = (transform.set_random_state(seed)(item) for _ in range(2))
    for key, channels, dtype in (
        ("image", 2, torch.float32),
        ("instances", 1, torch.int32),
        ("depth", 2, torch.float32),
    ):
        assert (first[key].shape, first[key].dtype) == ((channels, 32, 32), dtype)
        assert torch.equal(first[key], second[key])
    assert first["instances"].min() >= 1
    assert first["instances"].max() <= height * width
    assert first["id"] == "a"
    assert item["image"].shape == (2, height, width)


def test_crops_differ_in_place_size_and_direction():
    item, transform = coordinates(200, 200), RandZoomCropd("image", 32, ["image"]).set_random_state(0)
    places, steps = set(), set()
    for _ in range(200):
        found = transform(item)["image"]
        places.add(tuple(found[:, 16, 16].round().tolist()))
        step = found[:, 16, 17] - found[:, 16, 16]
        steps.add((step.sign() * (step.abs() > 1e-3)).int().tolist().__repr__())
    assert len(places) > 150
    assert steps == {"[1, 0]", "[-1, 0]", "[0, 1]", "[0, -1]"}


def test_small_images_are_continued_by_their_mirror_image():
    item = coordinates(22, 25)
    result = crop(40, prob=0.0).set_random_state(1)(item)
    labels = result["instances"][0].numpy() - 1
    found = np.stack([labels % 25, labels // 25])
    mirrored = np.concatenate([np.arange(22), np.arange(21, 3, -1)])
    rows = np.repeat(mirrored[:, None], 40, axis=1)
    columns = np.repeat(np.concatenate([np.arange(25), np.arange(24, 9, -1)])[None], 40, axis=0)
    versions = [
        flip(np.rot90(np.stack([columns, rows]), turns, axes=(1, 2)))
        for turns in range(4)
        for flip in (lambda a: a, lambda a: a[..., ::-1])
    ]
    assert sum(np.array_equal(found, version) for version in versions) == 1
    np.testing.assert_array_equal(result["image"], found)


def test_probability_says_how_many_crops_are_magnified():
    item = coordinates(200, 200)
    zoomed = []
    transform = RandZoomCropd("image", 32, ["map"], (1.5, 2.0), prob=0.3).set_random_state(0)
    for _ in range(400):
        found = transform(item)["image"]
        zoomed.append(float((found[:, 16, 17] - found[:, 16, 16]).abs().max()) < 0.9)
    assert 0.22 < np.mean(zoomed) < 0.38


def stained(seed=0, side=16):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(110, 250, (3, side, side)).astype(np.uint8))


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_stains_change_as_scikit_image_says(seed):
    rng = np.random.default_rng(seed)
    # scikit-image cuts negative amounts off, so the image has none.
    image = (255 * hed2rgb(rng.uniform(0.02, 0.06, (12, 12, 3)))).round().astype(np.uint8)
    transform = RandStainJitterd("image", prob=1.0, strength=0.4, shift=0.05).set_random_state(seed)
    found = transform({"image": torch.from_numpy(image.transpose(2, 0, 1))})["image"]
    assert (found.dtype, found.shape) == (torch.uint8, (3, 12, 12))
    transform.set_random_state(seed)
    transform.randomize(None)
    amount = 1 + transform.R.uniform(-0.4, 0.4, size=3)
    shift = transform.R.uniform(-0.05, 0.05, size=3)
    # scikit-image's unit of a stain is an optical density of ln(10**6)
    expected = 255 * hed2rgb(rgb2hed(image) * amount + shift / np.log(1e6))
    assert np.abs(found.numpy().transpose(1, 2, 0) - expected).max() <= 0.51


def test_dark_images_are_left_alone():
    transform = RandStainJitterd("image", prob=1.0).set_random_state(0)
    dark, bright = stained() // 3, stained()
    for _ in range(10):
        assert torch.equal(transform({"image": dark})["image"], dark)
        assert not torch.equal(transform({"image": bright})["image"], bright)


def test_stains_with_probability_0_stay():
    transform = RandStainJitterd("image", prob=0.0).set_random_state(0)
    assert all(torch.equal(transform({"image": stained()})["image"], stained()) for _ in range(10))


NEVER = {"grey": 0.0, "inverted": 0.0, "blurred": 0.0, "noisy": 0.0, "compressed": 0.0}


def degraded(image, seed=0, **shares):
    result = RandDegraded("image", **{**NEVER, **shares}).set_random_state(seed)({"image": image})["image"]
    assert (result.dtype, result.shape) == (torch.uint8, image.shape)
    return result.numpy()


def test_degradations_with_probability_0_change_nothing():
    for seed in range(20):
        np.testing.assert_array_equal(degraded(stained(), seed), stained())


def test_degradations_with_probability_1_do_what_they_are_called():
    image = stained(side=32)
    pixels = image.numpy().astype(float)
    grey = degraded(image, grey=1.0)
    luma = np.tensordot([0.299, 0.587, 0.114], pixels, axes=1)
    assert np.abs(grey - luma).max() <= 1
    np.testing.assert_array_equal(degraded(image, inverted=1.0), 255 - pixels)
    for seed in range(5):
        blurred = degraded(image, seed, blurred=1.0).astype(float)
        assert blurred.std() < pixels.std()
        assert blurred.mean() == pytest.approx(pixels.mean(), abs=2)
        noise = degraded(image, seed, noisy=1.0) - pixels
        unclipped = (pixels > 40) & (pixels < 215)
        assert 0 < noise[unclipped].std() < 13
        assert np.ptp(np.where(unclipped.all(axis=0), noise, 0), axis=0).max() <= 1  # the same in all colours
        compressed = degraded(image, seed, compressed=1.0).astype(float)
        assert 1 < np.abs(compressed - pixels).mean() < 60
        assert np.corrcoef(compressed.ravel(), pixels.ravel())[0, 1] > 0.3


def test_compression_keeps_the_order_of_the_colours():
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[0] = 200
    compressed = degraded(image, compressed=1.0)
    assert compressed[0].min() > 150
    assert compressed[1:].max() < 60


def test_degradations_are_as_frequent_as_said():
    transform = RandDegraded("image", **{**NEVER, "inverted": 0.25}).set_random_state(0)
    found = [not torch.equal(transform({"image": stained()})["image"], stained()) for _ in range(400)]
    assert 0.18 < np.mean(found) < 0.32


def test_degradations_take_jittered_floats_and_follow_from_the_seed():
    image = stained().float()
    shares = dict.fromkeys(NEVER, 0.5)
    transform = RandDegraded("image", **shares)
    first, second = (
        [transform.set_random_state(3)({"image": image})["image"] for _ in range(1)] for _ in "ab"
    )
    assert torch.equal(first[0], second[0])


@pytest.mark.parametrize(("instances", "maps"), [("components", 0), ("watershed", 0), ("distance", 1)])
def test_the_recipe_crops_first_and_then_changes_colours(instances, maps):
    transforms = microscopy_augmentation(32, [0.5, 2.0], instances)
    kinds = [type(transform) for transform in transforms]
    assert kinds == [NucleusDistanced] * maps + [
        RandZoomCropd,
        RandStainJitterd,
        RandColorJitterd,
        RandDegraded,
    ]
    y, x = np.mgrid[:80, :80]
    disc = (y % 40 - 20) ** 2 + (x % 40 - 20) ** 2 <= 225
    nuclei = np.where(disc, 1 + y // 40 + 2 * (x // 40), 0).astype(np.int32)[None]
    item = {"image": torch.full((3, 80, 80), 220, dtype=torch.uint8), "instances": torch.from_numpy(nuclei)}
    for transform in transforms:
        if hasattr(transform, "set_random_state"):
            transform.set_random_state(0)
        item = transform(item)
    assert item["image"].shape == (3, 32, 32)
    assert item["instances"].shape == (1, 32, 32)
    assert ("distance" in item) == bool(maps)
    if maps:
        assert item["distance"].shape == (1, 32, 32)
        assert (item["distance"] > 0.5).sum() > 20
        assert cv2.minMaxLoc(item["distance"][0].numpy() * (item["instances"][0].numpy() == 0))[1] < 0.1
