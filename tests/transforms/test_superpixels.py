import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nucsam_monai.transforms import RandSuperpixelsd
from nucsam_monai.transforms.superpixels import flatten_segments, superpixels
from nucsam_monai.utils.errors import ConfigurationError


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


def test_images_are_changed_with_the_probability_asked_for():
    image = torch.from_numpy(noise(12, 12))
    transform = RandSuperpixelsd(prob=0.5, replace_prob=1.0, n_segments=4).set_random_state(0)
    changed = sum(transform({"image": image})["image"] is not image for _ in range(60))
    assert 15 < changed < 45


@pytest.mark.parametrize("options", [{"replace_prob": 1.5}, {"n_segments": 0}, {"max_side_px": 0}])
def test_numbers_without_a_meaning_are_refused(options):
    with pytest.raises(ConfigurationError, match="superpixels"):
        RandSuperpixelsd(**options)
