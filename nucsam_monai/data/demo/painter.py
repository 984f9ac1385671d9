"""Turn a scene into a picture: chromatin, dyes, debris, light and camera of five kinds of microscopy.

Every ``render_*`` takes the scene, the random stream of its slide (colours, strength, light), that of the image, and
whether to draw clutter, which looks like nuclei but is not; it returns ``(H, W, 3)`` uint8 RGB.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from nucsam_monai.data.demo.scene import (
    ELONGATED,
    Nucleus,
    Scene,
    fibre_noise,
    fractal_noise,
    smooth_noise,
    soft_step,
)

# Optical density (base e) per unit of dye in red, green and blue. Haematoxylin and DAB: Ruifrok and Johnston,
# "Quantification of histochemical staining by color deconvolution", Anal Quant Cytol Histol 23 (2001). Their
# eosin is magenta; the one here is nearer to the pink of most slides. Red cells are eosin on haemoglobin.
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.11, 0.93, 0.30])
RED_CELLS = np.array([0.12, 0.80, 0.58])
DAB = np.array([0.27, 0.57, 0.78])
_DISCS_PER_GROUP = 8
_SUBPIXEL_BITS = 4  # cv2 draws at 1/16 pixel

_BLUE = np.array([0.12, 0.32, 1.0])
_GREY = np.ones(3)
_FOCUS_LEVELS_PX = (0.8, 1.7, 2.6)


def _jitter_dye(rng: np.random.Generator, dye: np.ndarray, spread: float = 0.05) -> np.ndarray:
    """Return a dye whose colour and strength vary a little, as between two laboratories."""
    varied = np.clip(dye + rng.normal(0, spread, 3), 0.02, None)
    return varied / np.linalg.norm(varied) * rng.uniform(0.88, 1.15)


def absorb(amounts: list[np.ndarray], dyes: list[np.ndarray], white: np.ndarray) -> np.ndarray:
    """Send white light through layers of dye (Beer-Lambert law: densities add, light multiplies).

    Args:
        amounts: one ``(H, W)`` map per dye.
        dyes: one ``(3,)`` optical density (base e) per unit of dye.
        white: ``(3,)`` transmitted light of the empty slide in [0, 1].

    Returns:
        ``(H, W, 3)`` float32 in [0, 1].
    """
    density = sum(
        amount[..., None] * dye.astype(np.float32) for amount, dye in zip(amounts, dyes, strict=True)
    )
    return (white.astype(np.float32) * np.exp(-density)).astype(np.float32)


def blur(image: np.ndarray, sigma_px: float) -> np.ndarray:
    """Blur rows and columns by a Gaussian point spread function; channels stay apart."""
    sigmas = (sigma_px, sigma_px) + (0,) * (image.ndim - 2)
    return ndimage.gaussian_filter(image, sigmas, mode="reflect")


def illumination(rng: np.random.Generator, shape: tuple[int, int], strength: float) -> np.ndarray:
    """Return uneven light: a gradient, a vignette off the centre and slow drift.

    Args:
        rng: source of randomness.
        shape: ``(H, W)``.
        strength: darkest place relative to the brightest is about ``1 - strength``.

    Returns:
        ``(H, W)`` float32 with a maximum of 1.
    """
    rows = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, shape[1], dtype=np.float32)[None]
    direction = rng.uniform(0, 2 * np.pi)
    gradient = np.float32(np.cos(direction)) * columns + np.float32(np.sin(direction)) * rows
    row, column = rng.uniform(-0.4, 0.4, 2).astype(np.float32)
    vignette = (rows - row) ** 2 + (columns - column) ** 2
    light = 0.5 * gradient - 0.45 * vignette + 0.2 * smooth_noise(rng, shape, 60)
    light -= light.max()
    return 1 + np.float32(strength) * light / max(float(-light.min()), 1e-6)


def expose(
    rng: np.random.Generator, light: np.ndarray, photons: float, read_noise: float = 0.004
) -> np.ndarray:
    """Take a picture: shot noise of ``photons`` at full white, read noise, eight bits.

    Args:
        rng: source of randomness.
        light: ``(H, W)`` or ``(H, W, 3)`` in [0, 1].
        photons: photons that a pixel of value 1 collects; fewer give more noise.
        read_noise: standard deviation of the camera's noise relative to full white.

    Returns:
        Same shape, uint8.
    """
    clean = np.clip(light, 0, 1)
    # The normal approximation of Poisson noise, softened by the interpolation of a colour camera.
    grain = rng.standard_normal(clean.shape, dtype=np.float32)
    grain = 1.6 * blur(grain, 0.45)
    noisy = clean + np.sqrt(clean / np.float32(photons) + np.float32(read_noise**2)) * grain
    return np.clip(np.rint(noisy * 255), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class ChromatinRecipe:
    """Configure how chromatin is spread inside nuclei; amounts are relative to a plain nucleus of 1.

    Attributes:
        vesicular_share: fraction of round nuclei with a pale interior and a dark rim.
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
    clumps = smooth_noise(rng, scene.shape, recipe.clump_px) + 0.6 * smooth_noise(
        rng, scene.shape, 2.5 * recipe.clump_px
    )

    def inside(nucleus: Nucleus) -> np.ndarray:
        vesicular = nucleus.class_id != ELONGATED and rng.random() < recipe.vesicular_share
        texture = recipe.clumping * rng.uniform(0.6, 1.4) * clumps[nucleus.box]
        local = _vesicular_profile(nucleus.radial) if vesicular else 1 - 0.12 * nucleus.radial
        local = local * (1 + texture)
        if nucleus.class_id != ELONGATED:
            for _ in range(int(rng.integers(1, 3)) if vesicular else int(rng.random() < 0.3)):
                local = local + recipe.nucleoli * _spot(rng, nucleus)
        return local

    return np.maximum(scene.paint(inside), 0)


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


def draw_discs(
    rng: np.random.Generator, free: np.ndarray, count: int, radius_px: tuple[float, float]
) -> np.ndarray:
    """Draw soft discs with a paler middle (red blood cells), in groups, on free ground.

    Args:
        rng: source of randomness.
        free: ``(H, W)`` bool, where a disc's centre may lie; discs stay off the rest.
        count: how many are tried.
        radius_px: smallest and largest radius.

    Returns:
        ``(H, W)`` float32 in [0, 1].
    """
    height, width = free.shape
    canvas = np.zeros(free.shape, dtype=np.float32)
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None]
    home_row, home_column = 0.0, 0.0
    for number in range(count):
        if number % _DISCS_PER_GROUP == 0:
            home_row, home_column = rng.uniform(0.05, 0.95) * height, rng.uniform(0.05, 0.95) * width
        row, column = home_row + rng.normal(0, 16), home_column + rng.normal(0, 16)
        radius = rng.uniform(*radius_px)
        top, left = max(0, int(row - radius) - 2), max(0, int(column - radius) - 2)
        window = slice(top, max(0, int(row + radius) + 3)), slice(left, max(0, int(column + radius) + 3))
        squeeze = rng.uniform(0.8, 1.2)
        distance = (
            np.hypot((rows[window[0]] - row) * squeeze, (columns[:, window[1]] - column) / squeeze) / radius
        )
        disc = np.clip((1.05 - distance) * radius, 0, 1) * (0.8 + 0.2 * np.clip(distance, 0, 1) ** 2)
        canvas[window] = np.maximum(canvas[window], disc)
    return canvas * free


def draw_specks(
    rng: np.random.Generator, shape: tuple[int, int], count: int, radius_px: tuple[float, float]
) -> np.ndarray:
    """Draw irregular specks of different darkness.

    Returns:
        ``(H, W)`` float32 in [0, 1].
    """
    canvas = np.zeros(shape, dtype=np.float32)
    for _ in range(count):
        centre = rng.uniform(0, 1, 2) * (shape[1], shape[0])
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        radii = rng.uniform(*radius_px) * rng.uniform(0.6, 1.2, 7)
        corners = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        _fill(canvas, corners, float(rng.uniform(0.4, 1)))
    return blur(canvas, 0.5)


def draw_strands(
    rng: np.random.Generator, shape: tuple[int, int], count: int, width_px: tuple[float, float]
) -> np.ndarray:
    """Draw long bent strands such as lint or elastic fibres.

    Returns:
        ``(H, W)`` float32 in [0, 1].
    """
    canvas = np.zeros(shape, dtype=np.float32)
    for _ in range(count):
        point = rng.uniform(0, 1, 2) * (shape[1], shape[0])
        direction, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.03)
        width, value = rng.uniform(*width_px), float(rng.uniform(0.4, 1))
        turns = direction + np.cumsum(bend + rng.normal(0, 0.05, int(rng.integers(20, 60))))
        steps = 3.0 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
        middle = point + np.cumsum(steps, axis=0)
        normal = np.stack([-np.sin(turns), np.cos(turns)], axis=1) * width / 2
        _fill(canvas, np.concatenate([middle + normal, (middle - normal)[::-1]]), value)
    return blur(canvas, 0.6)


def _fill(canvas: np.ndarray, corners_xy: np.ndarray, value: float) -> None:
    points = np.rint(corners_xy * 2**_SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(canvas, [points], value, lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)


def render_he(
    scene: Scene, slide: np.random.Generator, rng: np.random.Generator, clutter: bool
) -> np.ndarray:
    """Stain a scene with haematoxylin and eosin; clutter is red blood cells, pigment and mucin."""
    dyes = [_jitter_dye(slide, dye) for dye in (HAEMATOXYLIN, EOSIN, RED_CELLS)]
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
    eosin = _ground(scene, cytoplasm, stroma) * tissue
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
    return _photograph(rng, amounts, dyes, white, sharpness, 0.06, photons)


def render_cryo(
    scene: Scene, slide: np.random.Generator, rng: np.random.Generator, clutter: bool
) -> np.ndarray:
    """Stain a frozen section: other dyes, smeared chromatin, ice-crystal holes, cracks and folds, soft focus."""
    dyes = [
        _jitter_dye(slide, np.array([0.72, 0.66, 0.24])),  # a bluer haematoxylin
        _jitter_dye(slide, np.array([0.24, 0.86, 0.45])),  # a duller, more orange eosin
    ]
    white = slide.uniform(0.86, 0.93) * np.array([0.99, 0.985, slide.uniform(0.93, 0.98)])
    strength, sharpness, photons = (
        slide.uniform(0.85, 1.15, 2),
        slide.uniform(1.2, 1.8),
        slide.uniform(400, 800),
    )

    texture = draw_chromatin(rng, scene, ChromatinRecipe(0.5, 0.35, 1.8, 0.4))
    nuclear = texture * scene.spread(0.85 * _nuclear_strength(rng, scene, faint_share=0.25))
    eosin = _ground(scene, _cytoplasm(rng, scene), _stroma(rng, scene))
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
    amounts = [strength[0] * haematoxylin, strength[1] * eosin]
    return _photograph(rng, amounts, dyes, white, sharpness, 0.12, photons)


def render_ihc(
    scene: Scene, slide: np.random.Generator, rng: np.random.Generator, clutter: bool
) -> np.ndarray:
    """Stain a scene for a nuclear antigen (DAB): brown positive nuclei among pale blue negative ones."""
    dyes = [_jitter_dye(slide, np.array([0.74, 0.60, 0.32])), _jitter_dye(slide, DAB)]
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
    ground = _ground(scene, cytoplasm, stroma) * tissue
    haematoxylin = counterstain * texture * scene.spread(blue) + 0.11 * ground
    brown = dab_texture * scene.spread(grade)
    brown += blush * ground * np.clip(1 + 0.8 * smooth_noise(rng, scene.shape, 25), 0, 3)
    if clutter:
        cloud = soft_step(smooth_noise(rng, scene.shape, 20), 1.1, 0.8)  # unspecific staining
        brown += 0.5 * cloud * ground
        brown += 1.3 * draw_specks(rng, scene.shape, int(rng.integers(3, 16)), (0.8, 2.6))
        haematoxylin += 0.5 * draw_strands(rng, scene.shape, int(rng.integers(0, 4)), (1.2, 2.5))
    return _photograph(rng, [haematoxylin, brown], dyes, white, sharpness, 0.14, photons)


def _photograph(
    rng: np.random.Generator,
    amounts: list[np.ndarray],
    dyes: list[np.ndarray],
    white: np.ndarray,
    sharpness_px: float,
    shading: float,
    photons: float,
) -> np.ndarray:
    """Take a picture of a stained section in transmitted light."""
    light = absorb([blur(amount, sharpness_px) for amount in amounts], dyes, white)
    return expose(rng, light * illumination(rng, amounts[0].shape, shading)[..., None], photons)


def _ground(scene: Scene, epithelial: np.ndarray, stromal: np.ndarray) -> np.ndarray:
    """Return one map in the epithelium and another in the stroma."""
    return scene.tissue.epithelium * epithelial + (1 - scene.tissue.epithelium) * stromal


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


def render_fluorescence(
    scene: Scene, slide: np.random.Generator, rng: np.random.Generator, clutter: bool
) -> np.ndarray:
    """Light up a scene in a widefield fluorescence microscope: grey, or blue as some viewers export it.

    Nuclei differ several-fold in brightness and lie in three focal planes; light from outside the focus and the
    camera's offset lie over everything.
    """
    colour = _BLUE if slide.random() < 0.3 else _GREY
    gain, offset = slide.uniform(0.5, 0.8), slide.uniform(0.03, 0.07)
    haze_level, photons, vignette = slide.uniform(0.04, 0.13), slide.uniform(60, 220), slide.uniform(0.3, 0.6)

    texture = draw_chromatin(rng, scene, ChromatinRecipe(0.0, 0.13, 1.8, -0.35))
    # A nucleus is a flat drop: thinner, so darker, towards its edge.
    edge = scene.paint(lambda nucleus: np.sqrt(np.clip(1.12 - nucleus.radial**2, 0.05, None)))
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


def render_phase(
    scene: Scene, slide: np.random.Generator, rng: np.random.Generator, clutter: bool
) -> np.ndarray:
    """Image a scene in positive phase contrast.

    The optical path (cytoplasm, nuclei, granules) darkens; subtracting its blur, as the phase ring does,
    gives the bright halo round everything that is thick. Clutter is dust, floating debris and scratches.
    """
    contrast, halo_px, level = slide.uniform(0.65, 0.9), slide.uniform(8, 12), slide.uniform(0.5, 0.62)
    sharpness, photons, shading = slide.uniform(0.7, 1.1), slide.uniform(500, 1200), slide.uniform(0.2, 0.4)

    chromatin = draw_chromatin(rng, scene, ChromatinRecipe(0.0, 0.08, 1.5, 0.9))
    rim = scene.paint(lambda nucleus: np.exp(-(((nucleus.radial - 0.92) / 0.1) ** 2)))
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
