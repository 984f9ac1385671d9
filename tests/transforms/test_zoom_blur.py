import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from nucsam_monai.transforms import RandZoomBlurd
from nucsam_monai.transforms.zoom_blur import zoom_blur


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


def test_images_are_blurred_with_the_probability_asked_for():
    image = torch.rand(1, 16, 16)
    transform = RandZoomBlurd(prob=0.5, max_factor=1.5).set_random_state(0)
    changed = sum(transform({"image": image})["image"] is not image for _ in range(200))
    assert 65 < changed < 135
