import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import MetaTensor, set_track_meta
from monai.transforms import (
    Rand2DElasticd,
    RandAdjustContrastd,
    RandFlipd,
    RandGaussianNoised,
    RandRotate90d,
    RandRotated,
    RandZoomd,
    ScaleIntensityRanged,
)
from monai.utils import set_determinism
from skimage.color import hed2rgb, rgb2hed

from nucsam_monai.transforms import (
    AugmentedCopiesd,
    NormalizeSAMd,
    NucleusDistanced,
    RandColorJitterd,
    RandDegraded,
    RandGridShuffled,
    RandStainJitterd,
    RandSuperpixelsd,
    RandZoomBlurd,
    RandZoomCropd,
    microscopy_augmentation,
)
from nucsam_monai.transforms.augmentation import flatten_segments, shuffle_cells, superpixels, zoom_blur
from nucsam_monai.utils.errors import ConfigurationError

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


def test_degradations_with_probability_1_match_their_names():
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


def image(seed=0, height=4, width=6):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_jitter_follows_from_the_seed_and_keeps_the_scale(seed):
    pixels = image(seed)
    transform = RandColorJitterd("image", prob=1.0, brightness=0.5, contrast=0.9, balance=0.5)
    first = transform.set_random_state(seed)({"image": pixels})["image"]
    second = transform.set_random_state(seed)({"image": pixels})["image"]
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first.dtype == torch.float32
    assert first.shape == pixels.shape
    assert 0 <= first.min() <= first.max() <= 255
    assert torch.equal(first, first.round())
    third = transform({"image": pixels})["image"]
    assert not torch.equal(first, third)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 2))
def test_jittered_dark_images_can_be_normalised(seed, value):
    item = {"image": torch.full((3, 4, 4), value, dtype=torch.uint8)}
    jittered = RandColorJitterd("image", prob=1.0, brightness=0.005).set_random_state(seed)(item)
    assert NormalizeSAMd("image")(jittered)["image"].isfinite().all()


def test_jitter_changes_colours_and_nothing_else():
    pixels = torch.full((3, 4, 6), 60, dtype=torch.uint8)
    pixels[:, 1, 2] = 200
    instances = (pixels[:1] > 100).int()
    item = {"image": pixels.clone(), "instances": instances.clone(), "id": "a"}
    transform = RandColorJitterd("image", prob=1.0, brightness=0.1, contrast=0.1, balance=0.1)
    result = transform.set_random_state(3)(item)
    assert torch.equal(item["image"], pixels)
    assert torch.equal(result["instances"], instances)
    assert result["id"] == "a"
    assert not torch.equal(result["image"], pixels.float())
    assert torch.equal((result["image"][:1] > 130).int(), instances)


def test_jitter_with_probability_0_changes_nothing():
    pixels = image()
    transform = RandColorJitterd("image", prob=0.0).set_random_state(0)
    for _ in range(5):
        assert torch.equal(transform({"image": pixels})["image"], pixels)


KEYS = ("image", "instances")
MODES = ("bilinear", "nearest")


def paper_augmentation():
    """What eU-Net3+ was trained with, as far as its text says it."""
    return [
        RandFlipd(KEYS, prob=0.5, spatial_axis=0),
        RandRotate90d(KEYS, prob=0.75),
        RandRotated(KEYS, range_x=np.pi, prob=0.5, mode=MODES, padding_mode="reflection"),
        RandZoomd(KEYS, prob=0.5, min_zoom=1.0, max_zoom=2.0, mode=MODES),
        Rand2DElasticd(KEYS, (16, 16), (1, 2), prob=0.5, mode=MODES, padding_mode="reflection"),
        RandAdjustContrastd("image", prob=0.5, gamma=(0.7, 1.5)),
        RandGaussianNoised("image", prob=0.5, std=8.0),
        ScaleIntensityRanged("image", 0.0, 255.0, 0.0, 255.0, clip=True),
    ]


def item(name="a", seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, 32, 32), generator=generator).byte()
    instances = torch.randint(0, 4, (1, 32, 32), generator=generator, dtype=torch.int32)
    return {"id": name, "image": image, "instances": instances}


def test_a_copy_is_the_same_in_every_epoch_and_process():
    first, second = (AugmentedCopiesd(paper_augmentation(), copies=4) for _ in range(2))
    for seed, copies in ((1, first), (2, second)):
        copies.set_random_state(seed=seed)
    expected = [first.copy_of(item(), copy) for copy in range(4)]
    np.random.rand(3)  # noqa: NPY002  the global state must not matter
    seen = set()
    for _ in range(40):
        found = second(item())
        same = [copy for copy in range(4) if torch.equal(found["image"], expected[copy]["image"])]
        assert len(same) == 1
        assert torch.equal(found["instances"], expected[same[0]]["instances"])
        seen.update(same)
    assert seen == {0, 1, 2, 3}


def test_copies_differ_between_items_and_seeds():
    noise = [RandGaussianNoised("image", prob=1.0)]
    found = [
        AugmentedCopiesd(noise, seed=seed).copy_of(item(name), 0)["image"]
        for seed, name in ((0, "a"), (0, "b"), (1, "a"))
    ]
    assert not any(torch.equal(found[0], other) for other in found[1:])


def test_copies_are_images_and_masks_still():
    copies = AugmentedCopiesd(paper_augmentation(), copies=20)
    for copy in range(20):
        found = copies.copy_of(item(), copy)
        assert found["image"].shape == (3, 32, 32)
        assert set(found["instances"].unique().tolist()) <= {0, 1, 2, 3}
        assert NormalizeSAMd("image")(found)["image"].isfinite().all()


def test_item_itself_stays_as_it_is():
    original = item()
    AugmentedCopiesd(paper_augmentation(), copies=3)(original)
    assert torch.equal(original["image"], item()["image"])
    assert torch.equal(original["instances"], item()["instances"])


def test_without_a_number_no_copy_comes_again():
    copies = AugmentedCopiesd([RandGaussianNoised("image", prob=1.0)], copies=None)
    copies.set_random_state(seed=0)
    assert len({copies(item())["image"].numpy().tobytes() for _ in range(30)}) == 30


def test_one_copy_is_the_least():
    with pytest.raises(ConfigurationError, match="augmented copies 0: expected 1 or more"):
        AugmentedCopiesd([], copies=0)


@settings(max_examples=60)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 4), st.randoms())
def test_each_cell_is_the_one_that_was_ordered(height, width, grid, random):
    pixels = torch.arange(2 * height * width).reshape(2, height, width)
    order = list(range(grid**2))
    random.shuffle(order)
    shuffled = shuffle_cells(pixels, torch.tensor(order), grid)
    h, w = height // grid, width // grid

    def cell(image, number):
        top, left = number // grid * h, number % grid * w
        return image[:, top : top + h, left : left + w]

    for number, source in enumerate(order):
        assert torch.equal(cell(shuffled, number), cell(pixels, source))
    assert torch.equal(shuffled[:, grid * h :], pixels[:, grid * h :])
    assert torch.equal(shuffled[..., grid * w :], pixels[..., grid * w :])
    assert sorted(shuffled.flatten().tolist()) == pixels.flatten().tolist()


@pytest.mark.parametrize("kind", [torch.as_tensor, MetaTensor, np.asarray])
@pytest.mark.parametrize("size", [(16, 24), (19, 25)])
def test_image_instances_and_classes_stay_together(kind, size):
    rng = np.random.default_rng(0)
    instances = np.kron(rng.integers(0, 6, (5, 5)), np.ones((5, 5), dtype=int))[None, : size[0], : size[1]]
    classes = {number: 10 * number for number in range(1, 6)}
    item = {
        "image": kind(instances.repeat(3, axis=0).astype(np.uint8)),
        "instances": kind(instances.astype(np.int32)),
        "classes": classes,
    }
    before = instances.copy()
    shuffled = RandGridShuffled(prob=1.0).set_random_state(0)(item)
    assert type(shuffled["image"]) is type(item["image"])
    assert shuffled["image"].dtype == item["image"].dtype
    assert shuffled["instances"].dtype == item["instances"].dtype
    np.testing.assert_array_equal(item["instances"], before)
    assert item["classes"] is classes
    # the image holds each pixel's old id, the classes ten times that
    moved, wholes = np.asarray(shuffled["instances"])[0], np.asarray(shuffled["image"])[0]
    assert not np.array_equal(wholes, before[0])
    assert (wholes[moved == 0] == 0).all()
    for part, kind_of_part in shuffled["classes"].items():
        assert (10 * wholes[moved == part] == kind_of_part).all()
    assert set(np.unique(moved)) - {0} == set(shuffled["classes"])


def test_the_parts_of_a_cut_nucleus_are_nuclei_of_their_own():
    instances = torch.zeros(1, 8, 8, dtype=torch.int32)
    instances[0, 3:5, 3:5] = 9  # on the corner of four cells
    instances[0, 0, 0] = 70_000
    shuffled = RandGridShuffled(prob=1.0, grid=2).set_random_state(1)(
        {"image": instances.clone(), "instances": instances, "classes": {9: 1, 70_000: 0}}
    )
    ids, areas = shuffled["instances"].unique(return_counts=True)
    assert ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert areas[1:].tolist() == [1] * 5
    assert sorted(shuffled["classes"].values()) == [0, 1, 1, 1, 1]


def test_cells_are_exchanged_with_the_given_probability():
    item = {"image": torch.arange(64).reshape(1, 8, 8), "instances": torch.zeros(1, 8, 8, dtype=torch.int32)}
    transform = RandGridShuffled(prob=0.5).set_random_state(0)
    changed = sum(not torch.equal(transform(item)["image"], item["image"]) for _ in range(200))
    assert 65 < changed < 135
    assert RandGridShuffled(prob=0.0)(item)["image"] is item["image"]


def test_images_smaller_than_the_grid_stay_as_they_are():
    item = {"image": torch.arange(6).reshape(1, 2, 3), "instances": torch.tensor([[[0, 1, 1], [0, 0, 1]]])}
    shuffled = RandGridShuffled(prob=1.0)(item)
    assert torch.equal(shuffled["image"], item["image"])
    assert torch.equal(shuffled["instances"], item["instances"])


def noise(height=40, width=60, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (3, height, width)).astype(np.float32)


@given(st.integers(0, 1000), st.integers(1, 6))
def test_only_chosen_segments_become_their_mean(seed, count):
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 255, (3, 5, 7)).astype(np.float32)
    segments, replaced = rng.integers(0, count, (5, 7)), rng.random(count) < 0.5
    found = flatten_segments(image, segments, replaced)
    for number in range(count):
        own = image[:, segments == number]
        expected = np.broadcast_to(own.mean(axis=1, keepdims=True), own.shape) if replaced[number] else own
        np.testing.assert_allclose(found[:, segments == number], expected, rtol=1e-5)


def test_superpixels_follow_the_edges_of_the_image():
    image = np.zeros((3, 64, 96), dtype=np.float32)
    image[:, :, 48:] = 255
    segments = superpixels(image, n_segments=24, max_side_px=96)
    assert segments.shape == (64, 96)
    assert set(segments[:, :48].ravel()).isdisjoint(segments[:, 48:].ravel())
    assert 8 <= len(np.unique(segments)) <= 48


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (300, 20)])
def test_images_of_any_size_are_divided(shape):
    assert superpixels(noise(*shape), n_segments=200, max_side_px=32).shape == shape


def test_a_share_of_the_image_loses_its_detail():
    slope = torch.linspace(0, 200, 96).expand(3, 96, 96) + torch.linspace(0, 50, 96)[:, None]
    image = slope + torch.from_numpy(noise(96, 96)) / 50
    transform = RandSuperpixelsd(prob=1.0, replace_prob=0.5).set_random_state(0)
    found = transform({"image": image})["image"]
    assert found.dtype == torch.float32
    changed = (found != image).any(dim=0).float().mean()
    assert 0.3 < changed < 0.7
    detail = [one.diff(dim=-1).abs().mean() for one in (found, image)]
    assert detail[0] < 0.95 * detail[1]


def test_images_are_changed_with_the_given_probability():
    image = torch.from_numpy(noise(12, 12))
    transform = RandSuperpixelsd(prob=0.5, replace_prob=1.0, n_segments=4).set_random_state(0)
    changed = sum(transform({"image": image})["image"] is not image for _ in range(60))
    assert 15 < changed < 45


@pytest.mark.parametrize("options", [{"replace_prob": 1.5}, {"n_segments": 0}, {"max_side_px": 0}])
def test_numbers_without_a_meaning_are_refused(options):
    with pytest.raises(ConfigurationError, match="superpixels"):
        RandSuperpixelsd(**options)


def test_a_factor_of_one_changes_nothing():
    image = torch.rand(3, 7, 10)
    torch.testing.assert_close(zoom_blur(image, torch.ones(3)), image)


def test_a_factor_magnifies_about_the_centre():
    y = torch.arange(9.0)[:, None].expand(9, 9)
    magnified = zoom_blur(y[None], torch.tensor([2.0]))[0]
    torch.testing.assert_close(magnified, 4 + (y - 4) / 2)


def test_the_result_is_the_mean_of_the_magnified_images():
    image = torch.rand(2, 12, 9)
    factors = torch.tensor([1.0, 1.2, 1.5])
    single = [zoom_blur(image, factor[None]) for factor in factors]
    torch.testing.assert_close(zoom_blur(image, factors), torch.stack(single).mean(dim=0))


@pytest.mark.parametrize("kind", [torch.as_tensor, MetaTensor, np.asarray])
def test_blur_keeps_the_range_and_grows_towards_the_border(kind):
    board = np.indices((65, 65)).sum(axis=0) % 2 * 255
    image = kind(np.stack([board] * 3).astype(np.uint8))
    blurred = RandZoomBlurd(prob=1.0, max_factor=1.05).set_random_state(3)({"image": image})["image"]
    assert type(blurred) is type(image)
    pixels = np.asarray(blurred)
    assert pixels.dtype == np.float32
    assert pixels.min() >= 0
    assert pixels.max() <= 255
    centre, corner = pixels[:, 30:35, 30:35], pixels[:, :5, :5]
    assert centre.std() > corner.std() > 0


def test_images_are_blurred_with_the_given_probability():
    image = torch.rand(1, 16, 16)
    transform = RandZoomBlurd(prob=0.5, max_factor=1.5).set_random_state(0)
    changed = sum(transform({"image": image})["image"] is not image for _ in range(200))
    assert 65 < changed < 135


SIDE = 64
BOTH = ["image", "instances"]
RECIPE = [
    {"_target_": "nucsam_monai.transforms.RandGridShuffled", "keys": BOTH, "prob": 0.5, "grid": 4},
    {
        "_target_": "TorchVisiond",
        "keys": "image",
        "name": "RandomApply",
        "p": 0.2,
        "transforms": [
            {
                "_target_": "torchvision.transforms.ColorJitter",
                "brightness": 0.25,
                "contrast": 0.25,
                "saturation": 0.1,
                "hue": 0.05,
            }
        ],
    },
    {"_target_": "RandRotate90d", "keys": BOTH, "prob": 0.5},
    {
        "_target_": "RandSimulateLowResolutiond",
        "keys": "image",
        "prob": 0.15,
        "zoom_range": [0.5, 0.5],
        "downsample_mode": "nearest",
        "upsample_mode": "nearest",
    },
    # sigma of box blurs of 3 to 9 pixels
    {
        "_target_": "RandGaussianSmoothd",
        "keys": "image",
        "prob": 0.2,
        "sigma_x": [0.8, 2.6],
        "sigma_y": [0.8, 2.6],
    },
    {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.25, "std": 7.07, "sample_std": True},
    {"_target_": "nucsam_monai.transforms.RandZoomBlurd", "keys": "image", "prob": 0.1, "max_factor": 1.05},
    {"_target_": "RandFlipd", "keys": BOTH, "prob": 0.5, "spatial_axis": 0},
    {"_target_": "RandFlipd", "keys": BOTH, "prob": 0.5, "spatial_axis": 1},
    {
        "_target_": "RandAffined",
        "keys": BOTH,
        "prob": 0.5,
        "translate_range": [0.3 * SIDE, 0.3 * SIDE],
        "scale_range": [0.1, 0.1],
        "mode": ["bilinear", "nearest"],
        "padding_mode": "zeros",
    },
    {
        "_target_": "ScaleIntensityRanged",
        "keys": "image",
        "a_min": 0,
        "a_max": 255,
        "b_min": 0,
        "b_max": 255,
        "clip": True,
    },
    {"_target_": "nucsam_monai.transforms.NormalizeSAMd", "keys": "image"},
    {"_target_": "nucsam_monai.transforms.NucleusCentroidsd", "keys": "instances"},
]


@pytest.fixture
def without_meta():
    set_track_meta(False)
    yield
    set_track_meta(True)
    set_determinism(None)


def sample():
    """Bright discs of two classes on black; ids above what half precision could hold."""
    rows, columns = np.indices((SIDE, SIDE))
    instances = np.zeros((1, SIDE, SIDE), dtype=np.int32)
    for number, (y, x) in enumerate([(12, 12), (14, 40), (40, 20), (46, 46)]):
        instances[0, (rows - y) ** 2 + (columns - x) ** 2 <= 49] = 70_001 + number
    image = torch.from_numpy(200 * (instances > 0).astype(np.uint8)).repeat(3, 1, 1)
    classes = {70_001: 0, 70_002: 1, 70_003: 0, 70_004: 1}
    return {"image": image, "instances": torch.from_numpy(instances), "classes": classes}


def test_image_points_and_mask_follow_each_other(without_meta):
    set_determinism(0)
    parser = ConfigParser({"recipe": {"_target_": "Compose", "transforms": RECIPE}})
    recipe = parser.get_parsed_content("recipe")
    for _ in range(25):
        item = recipe(sample())
        image, mask, points = item["image"], item["mask"][0], item["points"]
        assert image.shape == (3, SIDE, SIDE)
        assert image.dtype == torch.float32
        assert len(points) == len(item["point_classes"]) == len(item["instances"].unique()) - 1
        assert set(item["point_classes"].tolist()) <= {0, 1}
        bright = image.mean(dim=0) > image.mean(dim=0).amax() / 2 + image.mean(dim=0).amin() / 2
        assert (bright == (mask > 0)).float().mean() > 0.9
        columns, rows = points.round().long().T
        assert mask[rows, columns].all()
