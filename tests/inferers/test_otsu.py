import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.inferers.otsu import otsu_foreground
from nucsam_monai.utils.errors import ImageReadError
from tests.oracles.otsu_slow import slow_otsu_threshold


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
