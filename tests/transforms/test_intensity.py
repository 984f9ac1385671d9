import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from nucsam_monai.transforms.intensity import NormalizeSAMd, RandColorJitterd
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.sam_pixels import SAM_PIXEL_MEAN, SAM_PIXEL_STD


def image(seed=0, height=4, width=6):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


@pytest.mark.parametrize(("pixel_std", "divisor"), [("sam", SAM_PIXEL_STD), ("released", SAM_PIXEL_MEAN)])
def test_normalisation_subtracts_the_mean_and_divides(pixel_std, divisor):
    pixels = image()
    result = NormalizeSAMd("image", pixel_std)({"image": pixels})["image"]
    assert result.dtype == torch.float32
    for channel in range(3):
        expected = (pixels[channel].double() - SAM_PIXEL_MEAN[channel]) / divisor[channel]
        np.testing.assert_allclose(result[channel], expected, atol=1e-6)


def test_normalisation_equals_that_of_imagenet_on_the_unit_scale():
    pixels = image()
    expected = (pixels / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    torch.testing.assert_close(NormalizeSAMd("image")({"image": pixels})["image"], expected)


def test_normalisation_keeps_the_kind_of_array():
    pixels = image()
    normalise = NormalizeSAMd("image")
    expected = normalise({"image": pixels})["image"]
    from_numpy = normalise({"image": pixels.numpy()})["image"]
    assert isinstance(from_numpy, np.ndarray)
    assert from_numpy.dtype == np.float32
    np.testing.assert_array_equal(from_numpy, expected)
    with_meta = normalise({"image": MetaTensor(pixels, meta={"filename_or_obj": "a.png"})})["image"]
    assert with_meta.meta["filename_or_obj"] == "a.png"
    np.testing.assert_array_equal(with_meta.as_tensor(), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.rand(3, 4, 4),
        torch.full((3, 4, 4), 255.5),
        torch.full((3, 4, 4), -0.5),
        torch.full((3, 4, 4), float("nan")),
        torch.zeros(1, 4, 4),
        torch.zeros(4, 4, 3),
        torch.zeros(1, 3, 4, 4),
        torch.zeros(4, 4),
    ],
)
def test_what_is_not_rgb_of_0_to_255_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="expected"):
        NormalizeSAMd("image")({"image": wrong})


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.1, 1.0), st.integers(0, 100))
def test_with_its_own_contrast_an_image_looks_the_same_faint_or_strong(seed, contrast, shift):
    pixels = image(seed, 12, 12).float()
    changed = (pixels / 2 * contrast + shift).clamp(0, 255)
    normalise = NormalizeSAMd("image", "image")
    found, other = (normalise({"image": each})["image"] for each in (pixels, changed))
    torch.testing.assert_close(found, other, atol=1e-4, rtol=1e-4)
    expected = (pixels.double() - pixels.double().mean()) / pixels.double().std()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_noise_of_an_empty_image_is_not_blown_up():
    pixels = torch.full((3, 8, 8), 7.0)
    pixels[:, ::2] = 8.0
    found = NormalizeSAMd("image", "image")({"image": pixels})["image"]
    assert found.abs().max() == pytest.approx(0.25)


def test_an_image_is_not_normalised_twice():
    once = NormalizeSAMd("image")({"image": image()})
    with pytest.raises(ConfigurationError, match="Normalise once"):
        NormalizeSAMd("image")(once)


@pytest.mark.parametrize("value", [0, 1, 255])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_black_and_white_images_are_fine(value, dtype):
    pixels = torch.full((3, 2, 2), value, dtype=dtype)
    assert NormalizeSAMd("image")({"image": pixels})["image"].isfinite().all()


@pytest.mark.parametrize(("value", "fits"), [(-1e-4, True), (255.0001, True), (-0.5, False), (255.5, False)])
def test_interpolated_values_may_be_rounded_beyond_the_scale(value, fits):
    pixels = torch.full((3, 2, 2), 128.0)
    pixels[0, 0, 0] = value
    with contextlib.nullcontext() if fits else pytest.raises(ConfigurationError, match=r"in 0\.\.255"):
        NormalizeSAMd("image")({"image": pixels})


def test_unknown_divisor_is_refused():
    with pytest.raises(ConfigurationError, match="expected one of sam, released, image"):
        NormalizeSAMd("image", "imagenet")


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
