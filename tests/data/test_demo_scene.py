import numpy as np
import pytest
from scipy import ndimage

from nucsam_monai.data.demo.scene import (
    ELONGATED,
    ROUND,
    Scene,
    SceneRecipe,
    draw_scene,
    fibre_noise,
    fractal_noise,
    smooth_noise,
    soft_step,
)

CROWDED = SceneRecipe(nuclei=(90, 90), lumen_share=0.05, crowding=0.6)


@pytest.fixture(scope="module")
def crowded() -> Scene:
    return draw_scene(np.random.default_rng(5), (200, 240), CROWDED)


@pytest.mark.parametrize("scale_px", [0.8, 2.3, 7.0])
def test_smooth_noise_has_unit_variance_and_the_given_scale(scale_px: float) -> None:
    noise = smooth_noise(np.random.default_rng(0), (401, 503), scale_px)
    assert noise.shape == (401, 503)
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.1
    assert noise.std() == pytest.approx(1, abs=0.12)
    # White noise blurred by s has the autocorrelation exp(-d^2 / (4 s^2)).
    lag = max(1, round(scale_px))
    expected = np.exp(-(lag**2) / (4 * scale_px**2))
    assert (noise[:, lag:] * noise[:, :-lag]).mean() / noise.var() == pytest.approx(expected, abs=0.08)


def test_fractal_noise_has_unit_variance() -> None:
    assert fractal_noise(np.random.default_rng(0), (300, 300), 6).std() == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("width_px", [1.0, 3.0])
def test_fibres_run_along_the_flow(width_px: float) -> None:
    fibres = fibre_noise(np.random.default_rng(0), np.zeros((91, 120), np.float32), 20, width_px)
    assert fibres.shape == (91, 120)
    along, across = np.abs(np.diff(fibres, axis=1)).mean(), np.abs(np.diff(fibres, axis=0)).mean()
    assert across > 3 * along


def test_soft_step_goes_from_0_to_1_at_the_threshold() -> None:
    steps = soft_step(np.array([-5.0, 1.0, 7.0]), 1.0, 0.5)
    assert steps.tolist() == [0.0, 0.5, 1.0]


def test_nuclei_are_whole_contiguous_and_touch(crowded: Scene) -> None:
    ids = np.unique(crowded.instances)
    assert ids.tolist() == list(range(len(crowded.nuclei) + 1))
    assert len(crowded.nuclei) > 40
    four_connected = ndimage.generate_binary_structure(2, 1)
    touching = 0
    for number, nucleus in enumerate(crowded.nuclei, start=1):
        own = crowded.instances == number
        assert own.sum() >= 30
        assert ndimage.label(own, four_connected)[1] == 1
        assert own.sum() == nucleus.mask.sum()
        assert np.array_equal(own[nucleus.box], nucleus.mask)
        ring = ndimage.binary_dilation(own) & ~own
        touching += bool(crowded.instances[ring].any())
    assert touching > len(crowded.nuclei) / 4


def test_nuclei_have_the_sizes_and_classes_of_the_recipe(crowded: Scene) -> None:
    assert {nucleus.class_id for nucleus in crowded.nuclei} == {ROUND, ELONGATED}
    assert crowded.is_elongated.sum() == sum(nucleus.class_id == ELONGATED for nucleus in crowded.nuclei)
    radii = np.sqrt(np.bincount(crowded.instances.ravel())[1:] / np.pi)
    assert 5 < np.median(radii) < 13
    assert radii.max() < 21


def test_a_recipe_without_nuclei_gives_tissue_only() -> None:
    scene = draw_scene(np.random.default_rng(0), (64, 96), SceneRecipe(nuclei=(0, 0)))
    assert scene.shape == (64, 96)
    assert scene.nuclei == ()
    assert not scene.instances.any()
    assert not scene.spread(np.zeros(0)).any()


def test_spread_puts_each_value_on_its_nucleus(crowded: Scene) -> None:
    values = np.arange(1, len(crowded.nuclei) + 1)
    assert np.array_equal(crowded.spread(values), crowded.instances.astype(np.float32))
