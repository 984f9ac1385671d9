"""Nuclei that glow on a dark ground: a nuclear dye in a widefield fluorescence microscope."""

import numpy as np

from nucsam_monai.data.demo.chromatin import ChromatinRecipe, draw_chromatin
from nucsam_monai.data.demo.debris import draw_specks, draw_strands
from nucsam_monai.data.demo.geometry import Scene
from nucsam_monai.data.demo.noise import smooth_noise
from nucsam_monai.data.demo.optics import blur, expose, illumination

_BLUE = np.array([0.12, 0.32, 1.0])
_GREY = np.ones(3)
_FOCUS_LEVELS_PX = (0.8, 1.7, 2.6)


def render_fluorescence(
    scene: Scene, slide: np.random.Generator, rng: np.random.Generator, clutter: bool
) -> np.ndarray:
    """Light up a scene.

    Nuclei differ several-fold in brightness and lie in three focal planes; light from outside the focus
    and the camera's offset lie over everything.

    Args:
        scene: the geometry.
        slide: source of what a slide has in common (colour, exposure, background).
        rng: source of what is the image's own.
        clutter: draw bright debris and lint.

    Returns:
        ``(H, W, 3)`` uint8 RGB; grey, or blue as some viewers export it.
    """
    colour = _BLUE if slide.random() < 0.3 else _GREY
    gain, offset = slide.uniform(0.5, 0.8), slide.uniform(0.03, 0.07)
    haze_level, photons, vignette = slide.uniform(0.04, 0.13), slide.uniform(60, 220), slide.uniform(0.3, 0.6)

    texture = draw_chromatin(rng, scene, ChromatinRecipe(0.0, 0.13, 1.8, -0.35))
    edge = np.zeros(scene.shape, dtype=np.float32)
    for nucleus in scene.nuclei:  # a nucleus is a flat drop: thinner, so darker, towards its edge
        thickness = np.sqrt(np.clip(1.12 - nucleus.radial**2, 0.05, None))
        edge[nucleus.box][nucleus.mask] = thickness[nucleus.mask]
    count = len(scene.nuclei)
    brightness = np.clip(rng.lognormal(-0.45, 0.5, count), 0.26, 1.5)
    plane = rng.choice(len(_FOCUS_LEVELS_PX), count, p=[0.6, 0.27, 0.13])
    glow = np.zeros(scene.shape, dtype=np.float32)
    for level, sigma in enumerate(_FOCUS_LEVELS_PX):
        glow += blur(texture * edge * scene.spread(brightness * (plane == level)), sigma)
    haze = 0.6 * blur(glow, 12) + haze_level * np.clip(1 + 0.8 * smooth_noise(rng, scene.shape, 28), 0.1, 3)
    light = glow + haze
    if clutter:
        light += blur(0.8 * draw_specks(rng, scene.shape, int(rng.integers(3, 14)), (0.8, 2.8)), 0.8)
        light += 0.25 * blur(draw_strands(rng, scene.shape, int(rng.integers(0, 3)), (1.5, 4.0)), 1.5)
        light += 0.35 * blur(draw_specks(rng, scene.shape, int(rng.integers(1, 4)), (10.0, 20.0)), 9)
    light = offset + gain * light * illumination(rng, scene.shape, vignette)
    grey = expose(rng, light, photons, read_noise=0.012)
    return np.rint(grey[..., None] * colour).astype(np.uint8)
