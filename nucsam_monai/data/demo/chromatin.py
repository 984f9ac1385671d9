"""What the inside of a nucleus looks like: rim, clumps of chromatin and nucleoli."""

from dataclasses import dataclass

import numpy as np

from nucsam_monai.data.demo.geometry import ELONGATED, Nucleus, Scene
from nucsam_monai.data.demo.noise import smooth_noise


@dataclass(frozen=True)
class ChromatinRecipe:
    """How chromatin is spread inside nuclei; amounts are relative to a plain nucleus of 1.

    Attributes:
        vesicular_share: share of round nuclei with a pale interior and a dark rim.
        clumping: standard deviation of the chromatin's texture.
        clump_px: scale of that texture in pixels.
        nucleoli: amount that a nucleolus adds; negative where nucleoli exclude the stain.
    """

    vesicular_share: float = 0.35
    clumping: float = 0.22
    clump_px: float = 1.3
    nucleoli: float = 0.8


def draw_chromatin(rng: np.random.Generator, scene: Scene, recipe: ChromatinRecipe) -> np.ndarray:
    """Return the relative amount of chromatin.

    Returns:
        ``(H, W)`` float32, about 1 inside nuclei, 0 in the background, never negative.
    """
    amount = np.zeros(scene.shape, dtype=np.float32)
    clumps = smooth_noise(rng, scene.shape, recipe.clump_px) + 0.6 * smooth_noise(
        rng, scene.shape, 2.5 * recipe.clump_px
    )
    for nucleus in scene.nuclei:
        vesicular = nucleus.class_id != ELONGATED and rng.random() < recipe.vesicular_share
        texture = recipe.clumping * rng.uniform(0.6, 1.4) * clumps[nucleus.box]
        local = _vesicular_profile(nucleus.radial) if vesicular else 1 - 0.12 * nucleus.radial
        local = local * (1 + texture)
        if nucleus.class_id != ELONGATED:
            for _ in range(int(rng.integers(1, 3)) if vesicular else int(rng.random() < 0.3)):
                local = local + recipe.nucleoli * _spot(rng, nucleus)
        amount[nucleus.box][nucleus.mask] = local[nucleus.mask]
    return np.maximum(amount, 0)


def _vesicular_profile(radial: np.ndarray) -> np.ndarray:
    return 0.42 + 0.75 * np.exp(-(((radial - 0.9) / 0.16) ** 2))


def _spot(rng: np.random.Generator, nucleus: Nucleus) -> np.ndarray:
    """Return a round spot of height 1 in the inner half of the nucleus, in the nucleus's box."""
    distance, direction = nucleus.radius_px * rng.uniform(0, 0.5), rng.uniform(0, 2 * np.pi)
    row = nucleus.centre_px[0] + distance * np.sin(direction) - nucleus.box[0].start
    column = nucleus.centre_px[1] + distance * np.cos(direction) - nucleus.box[1].start
    rows, columns = np.indices(nucleus.radial.shape, dtype=np.float32)
    size = max(1.0, nucleus.radius_px * rng.uniform(0.12, 0.2))
    return np.exp(
        -((rows - np.float32(row)) ** 2 + (columns - np.float32(column)) ** 2) / np.float32(2 * size**2)
    )
