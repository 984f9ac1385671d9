"""Stained tissue in transmitted light: H&E of paraffin and frozen sections, DAB immunohistochemistry."""

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from nucsam_monai.data.demo.chromatin import ChromatinRecipe, draw_chromatin
from nucsam_monai.data.demo.debris import draw_discs, draw_specks, draw_strands
from nucsam_monai.data.demo.geometry import Scene
from nucsam_monai.data.demo.noise import fibre_noise, fractal_noise, smooth_noise, soft_step
from nucsam_monai.data.demo.optics import (
    DAB,
    EOSIN,
    HAEMATOXYLIN,
    RED_CELLS,
    absorb,
    blur,
    expose,
    illumination,
    jitter_dye,
)


def render_he(
    scene: Scene, slide: np.random.Generator, rng: np.random.Generator, clutter: bool
) -> np.ndarray:
    """Stain a scene with haematoxylin and eosin.

    Args:
        scene: the geometry.
        slide: source of what a slide has in common (stain colours, strength, light).
        rng: source of what is the image's own.
        clutter: draw red blood cells, pigment and mucin.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    dyes = [jitter_dye(slide, dye) for dye in (HAEMATOXYLIN, EOSIN, RED_CELLS)]
    white = slide.uniform(0.91, 0.97) * slide.uniform(0.975, 1.0, 3)
    strength, sharpness, photons = (
        slide.uniform(0.85, 1.2, 2),
        slide.uniform(0.6, 1.0),
        slide.uniform(700, 1500),
    )

    texture = draw_chromatin(rng, scene, ChromatinRecipe(0.45))
    nuclear = texture * scene.spread(_nuclear_strength(rng, scene, faint_share=0.3))
    stroma, cytoplasm, clefts = _stroma(rng, scene), _cytoplasm(rng, scene), _clefts(rng, scene)
    tissue = (1 - scene.tissue.lumen) * (1 - clefts)
    eosin = (scene.tissue.epithelium * cytoplasm + (1 - scene.tissue.epithelium) * stroma) * tissue
    eosin *= 1 - 0.45 * np.minimum(nuclear, 1)
    background_h = (0.10 + 0.22 * scene.tissue.epithelium) * np.clip(
        1 + 0.4 * fractal_noise(rng, scene.shape, 9), 0, 2
    )
    haematoxylin = 1.15 * nuclear + background_h * tissue
    blood = np.zeros(scene.shape, dtype=np.float32)
    if clutter:
        free = scene.instances == 0
        blood += 1.3 * draw_discs(rng, free, int(rng.integers(6, 34)), (4.5, 6.5))
        mucin = soft_step(smooth_noise(rng, scene.shape, 18), 1.1, 0.7) * free
        haematoxylin += 0.45 * mucin * np.clip(1 + 0.4 * fractal_noise(rng, scene.shape, 4), 0, 2)
        haematoxylin += 0.9 * draw_specks(rng, scene.shape, int(rng.integers(3, 14)), (0.8, 2.4))
        blood += 1.4 * draw_specks(rng, scene.shape, int(rng.integers(0, 8)), (0.8, 2.0))
    amounts = [strength[0] * haematoxylin, strength[1] * eosin, blood]
    light = absorb([blur(amount, sharpness) for amount in amounts], dyes, white)
    return expose(rng, light * illumination(rng, scene.shape, 0.06)[..., None], photons)


def render_cryo(
    scene: Scene, slide: np.random.Generator, rng: np.random.Generator, clutter: bool
) -> np.ndarray:
    """Stain a frozen section: other dyes, smeared chromatin, ice-crystal holes, cracks and folds, soft focus.

    Args and returns are those of :func:`render_he`.
    """
    dyes = [
        jitter_dye(slide, np.array([0.72, 0.66, 0.24])),  # a bluer haematoxylin
        jitter_dye(slide, np.array([0.24, 0.86, 0.45])),  # a duller, more orange eosin
    ]
    white = slide.uniform(0.86, 0.93) * np.array([0.99, 0.985, slide.uniform(0.93, 0.98)])
    strength, sharpness, photons = (
        slide.uniform(0.85, 1.15, 2),
        slide.uniform(1.2, 1.8),
        slide.uniform(400, 800),
    )

    texture = draw_chromatin(rng, scene, ChromatinRecipe(0.5, 0.35, 1.8, 0.4))
    nuclear = texture * scene.spread(0.85 * _nuclear_strength(rng, scene, faint_share=0.25))
    eosin = scene.tissue.epithelium * _cytoplasm(rng, scene) + (1 - scene.tissue.epithelium) * _stroma(
        rng, scene
    )
    haematoxylin = nuclear + 0.22 * np.clip(1 + 0.5 * fractal_noise(rng, scene.shape, 14), 0, 2.5)
    outside = scene.instances == 0
    holes = 0.6 * soft_step(fractal_noise(rng, scene.shape, 4.5, 2), 1.35, 0.5) * outside  # ice crystals
    cracks = 0.9 * draw_strands(rng, scene.shape, int(rng.integers(0, 4)), (2.0, 6.0)) * outside
    tissue = (1 - np.maximum(holes, cracks)) * (1 - scene.tissue.lumen)
    eosin, haematoxylin = eosin * tissue, np.where(outside, haematoxylin * tissue, haematoxylin)
    if clutter:
        fold = _fold(rng, scene.shape)
        eosin, haematoxylin = eosin * (1 + 0.8 * fold), haematoxylin * (1 + 0.5 * fold)
        eosin += 0.9 * draw_discs(rng, outside, int(rng.integers(3, 18)), (4.5, 6.5))
        haematoxylin += 0.8 * draw_specks(rng, scene.shape, int(rng.integers(3, 12)), (0.8, 2.6))
    amounts = [blur(strength[0] * haematoxylin, sharpness), blur(strength[1] * eosin, sharpness)]
    light = absorb(amounts, dyes, white) * illumination(rng, scene.shape, 0.12)[..., None]
    return expose(rng, light, photons)


def render_ihc(
    scene: Scene, slide: np.random.Generator, rng: np.random.Generator, clutter: bool
) -> np.ndarray:
    """Stain a scene for a nuclear antigen: brown positive nuclei among pale blue negative ones.

    Args and returns are those of :func:`render_he`.
    """
    dyes = [jitter_dye(slide, np.array([0.74, 0.60, 0.32])), jitter_dye(slide, DAB)]
    white = slide.uniform(0.86, 0.95) * np.array([1.0, slide.uniform(0.98, 1.0), slide.uniform(0.955, 0.995)])
    counterstain, positive_share = slide.uniform(0.4, 0.65), slide.uniform(0.25, 0.65)
    blush, sharpness, photons = slide.uniform(0.03, 0.12), slide.uniform(0.6, 1.1), slide.uniform(700, 1500)

    texture = draw_chromatin(rng, scene, ChromatinRecipe(0.4, 0.2, 1.2, 0.5))
    positive = (rng.random(len(scene.nuclei)) < positive_share) & ~scene.is_elongated
    grade = np.where(positive, rng.choice([0.3, 0.7, 1.4], len(positive), p=[0.4, 0.35, 0.25]), 0.0)
    grade *= rng.uniform(0.8, 1.2, len(grade))
    blue = np.where(positive, 0.5, 1.0) * rng.lognormal(-0.1, 0.4, len(grade))
    dab_texture = np.where(scene.instances > 0, np.clip(0.6 + 0.4 * texture, 0, 1.3), 0)

    tissue = (1 - scene.tissue.lumen) * (1 - _clefts(rng, scene))
    cytoplasm = np.clip(0.9 + 0.35 * fractal_noise(rng, scene.shape, 7), 0, 2)
    stroma = np.clip(0.8 + 0.45 * fibre_noise(rng, scene.tissue.flow, 14, 1.6), 0, 2.2)
    ground = (scene.tissue.epithelium * cytoplasm + (1 - scene.tissue.epithelium) * stroma) * tissue
    haematoxylin = counterstain * texture * scene.spread(blue) + 0.11 * ground
    brown = dab_texture * scene.spread(grade)
    brown += blush * ground * np.clip(1 + 0.8 * smooth_noise(rng, scene.shape, 25), 0, 3)
    if clutter:
        cloud = soft_step(smooth_noise(rng, scene.shape, 20), 1.1, 0.8)  # unspecific staining
        brown += 0.5 * cloud * ground
        brown += 1.3 * draw_specks(rng, scene.shape, int(rng.integers(3, 16)), (0.8, 2.6))
        haematoxylin += 0.5 * draw_strands(rng, scene.shape, int(rng.integers(0, 4)), (1.2, 2.5))
    light = absorb([blur(haematoxylin, sharpness), blur(brown, sharpness)], dyes, white)
    return expose(rng, light * illumination(rng, scene.shape, 0.14)[..., None], photons)


def _nuclear_strength(rng: np.random.Generator, scene: Scene, faint_share: float) -> np.ndarray:
    """Return the dye per nucleus: log-normal, spindle nuclei darker, some nuclei faint."""
    count = len(scene.nuclei)
    strength = rng.lognormal(-0.08, 0.22, count) * np.where(scene.is_elongated, 1.1, 1.0)
    return np.where(rng.random(count) < faint_share, 0.52 * strength, strength)


def _stroma(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Return the eosin of collagen: wavy bundles with fine fibrils."""
    bundles = fibre_noise(rng, scene.tissue.flow, 36, 4.0)
    fibrils = fibre_noise(rng, scene.tissue.flow, 12, 1.0)
    return np.clip(0.42 + 0.15 * bundles + 0.09 * fibrils, 0.04, 1.2)


def _clefts(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Return the white gaps between bundles of stroma, 0 to 1; never through a nucleus."""
    bundles = fibre_noise(rng, scene.tissue.flow, 30, 3.0)
    gaps = soft_step(bundles, 1.25, 0.5) * (1 - scene.tissue.epithelium)
    return 0.75 * gaps * (scene.instances == 0)


def _fold(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return a wavy band across the image where the section lies double, 0 to 1."""
    rows, columns = np.indices(shape, dtype=np.float32)
    direction = np.float32(rng.uniform(0, np.pi))
    across = (columns - shape[1] / 2) * np.cos(direction) + (rows - shape[0] / 2) * np.sin(direction)
    across = across - np.float32(rng.uniform(-100, 100)) + 9 * smooth_noise(rng, shape, 30)
    return soft_step(-np.abs(across), -np.float32(rng.uniform(5, 14)), 6)


def _cytoplasm(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Return the eosin of epithelial cells: granular, each cell its own tone, denser along the borders."""
    granules = fractal_noise(rng, scene.shape, 3.5)
    ground = 0.30 * np.clip(1 + 0.28 * granules + 0.2 * smooth_noise(rng, scene.shape, 25), 0.1, 2.5)
    if len(scene.nuclei) < 2:
        return ground
    tree = cKDTree([nucleus.centre_px for nucleus in scene.nuclei])
    rows, columns = np.indices(tuple(-(-length // 2) for length in scene.shape)) * 2.0
    wobble = 2.0 * smooth_noise(rng, rows.shape, 6)
    distances, nearest = tree.query(np.stack([rows + wobble, columns - wobble], axis=-1), k=2)
    border = np.exp(-(((distances[..., 1] - distances[..., 0]) / 2.2) ** 2)) * (distances[..., 0] < 26)
    tone = rng.normal(1, 0.12, len(scene.nuclei))[nearest[..., 0]]
    cells = ndimage.zoom((tone * (1 + 0.7 * border)).astype(np.float32), 2, order=1)
    return (ground * cells[: scene.shape[0], : scene.shape[1]]).astype(np.float32)
