"""The parts that the demo images are made of: chromatin, dyes, light, debris."""

import numpy as np
import pytest

from nucsam_monai.data.demo.painter import (
    HAEMATOXYLIN,
    ChromatinRecipe,
    absorb,
    draw_chromatin,
    draw_discs,
    draw_specks,
    draw_strands,
    expose,
    illumination,
)
from nucsam_monai.data.demo.scene import (
    Scene,
    SceneRecipe,
    draw_scene,
)

CROWDED = SceneRecipe(nuclei=(90, 90), lumen_share=0.05, crowding=0.6)


@pytest.fixture(scope="module")
def crowded() -> Scene:
    return draw_scene(np.random.default_rng(5), (200, 240), CROWDED)


def test_chromatin_lies_in_nuclei_only(crowded: Scene) -> None:
    amount = draw_chromatin(np.random.default_rng(0), crowded, ChromatinRecipe())
    assert not amount[crowded.instances == 0].any()
    assert amount.min() == 0
    assert 0.5 < amount[crowded.instances > 0].mean() < 1.3


def test_dyes_add_their_densities() -> None:
    once, white = np.full((2, 2), 0.4, np.float32), np.full(3, 0.95)
    twice = absorb([once, once], [HAEMATOXYLIN, HAEMATOXYLIN], white)
    assert twice == pytest.approx(np.broadcast_to(0.95 * np.exp(-0.8 * HAEMATOXYLIN), (2, 2, 3)), rel=1e-5)


def test_illumination_spans_the_strength() -> None:
    light = illumination(np.random.default_rng(0), (50, 70), 0.3)
    assert light.shape == (50, 70)
    assert light.max() == pytest.approx(1)
    assert light.min() == pytest.approx(0.7, abs=1e-5)


def test_fewer_photons_give_more_noise() -> None:
    grey = np.full((60, 60), 0.5, np.float32)
    few, many = (expose(np.random.default_rng(0), grey, photons) for photons in (50, 5000))
    assert few.dtype == np.uint8
    assert few.std() > 3 * many.std()
    assert many.mean() == pytest.approx(127.5, abs=1.5)


def test_debris_is_drawn_and_stays_in_range() -> None:
    rng = np.random.default_rng(0)
    free = np.ones((80, 90), dtype=bool)
    free[:, :20] = False
    discs = draw_discs(rng, free, 30, (4, 6))
    assert not discs[:, :20].any()
    for canvas in (discs, draw_specks(rng, (80, 90), 10, (1, 3)), draw_strands(rng, (80, 90), 3, (1.5, 3))):
        assert canvas.shape == (80, 90)
        assert 0 <= canvas.min() < 0.2 < canvas.max() <= 1.001
