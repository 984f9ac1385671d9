"""Unstained cells in a phase-contrast microscope: grey, with halos, rims and a shaded ground."""

import numpy as np

from nucsam_monai.data.demo.chromatin import ChromatinRecipe, draw_chromatin
from nucsam_monai.data.demo.debris import draw_specks, draw_strands
from nucsam_monai.data.demo.geometry import Scene
from nucsam_monai.data.demo.noise import fractal_noise, smooth_noise, soft_step
from nucsam_monai.data.demo.optics import blur, expose, illumination


def render_phase(
    scene: Scene, slide: np.random.Generator, rng: np.random.Generator, clutter: bool
) -> np.ndarray:
    """Image a scene in positive phase contrast.

    The optical path (cytoplasm, nuclei, granules) darkens; subtracting its blur, as the phase ring does,
    gives the bright halo round everything that is thick.

    Args:
        scene: the geometry.
        slide: source of what a slide has in common (contrast, halo, light).
        rng: source of what is the image's own.
        clutter: draw dust, floating debris and scratches.

    Returns:
        ``(H, W, 3)`` uint8, grey.
    """
    contrast, halo_px, level = slide.uniform(0.65, 0.9), slide.uniform(8, 12), slide.uniform(0.5, 0.62)
    sharpness, photons, shading = slide.uniform(0.7, 1.1), slide.uniform(500, 1200), slide.uniform(0.2, 0.4)

    chromatin = draw_chromatin(rng, scene, ChromatinRecipe(0.0, 0.08, 1.5, 0.9))
    rim = np.zeros(scene.shape, dtype=np.float32)
    for nucleus in scene.nuclei:
        ring = np.exp(-(((nucleus.radial - 0.92) / 0.1) ** 2))
        rim[nucleus.box][nucleus.mask] = ring[nucleus.mask]
    nuclei = (scene.instances > 0).astype(np.float32)
    body = _cell_bodies(rng, scene)
    granules = np.clip(fractal_noise(rng, scene.shape, 1.8, 2), -1.5, 3)
    cytoplasm = body * (0.26 + 0.1 * granules) * (1 - 0.6 * nuclei)
    strength = scene.spread(rng.uniform(0.4, 0.9, len(scene.nuclei)))
    path = cytoplasm + strength * (0.95 * chromatin + 0.3 * rim)
    if clutter:
        path += 0.8 * draw_specks(rng, scene.shape, int(rng.integers(4, 16)), (0.8, 2.5))
        path += 0.5 * draw_specks(rng, scene.shape, int(rng.integers(0, 3)), (4.0, 9.0))
        path -= 0.35 * draw_strands(rng, scene.shape, int(rng.integers(0, 3)), (1.0, 2.0))
    path = blur(path, sharpness)
    light = level - contrast * (path - 0.5 * blur(path, halo_px) - 0.4 * blur(path, halo_px / 3))
    light += 0.02 * fractal_noise(rng, scene.shape, 6)
    grey = expose(rng, light * illumination(rng, scene.shape, shading), photons)
    return np.repeat(grey[..., None], 3, axis=2)


def _cell_bodies(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Return flat, irregular cell bodies round the nuclei, 0 to 1."""
    near = blur((scene.instances > 0).astype(np.float32), 13)
    return soft_step(near + 0.035 * smooth_noise(rng, scene.shape, 9), 0.1, 0.07)
