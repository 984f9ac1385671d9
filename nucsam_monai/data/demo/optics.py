"""From amounts of dye to pixels: Beer-Lambert absorption, point spread, illumination and camera noise."""

import numpy as np
from scipy import ndimage

from nucsam_monai.data.demo.noise import smooth_noise

# Optical density (base e) per unit of dye in red, green and blue. Haematoxylin and DAB: Ruifrok and Johnston,
# "Quantification of histochemical staining by color deconvolution", Anal Quant Cytol Histol 23 (2001). Their
# eosin is magenta; the one here is nearer to the pink of most slides. Red cells are eosin on haemoglobin.
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.11, 0.93, 0.30])
RED_CELLS = np.array([0.12, 0.80, 0.58])
DAB = np.array([0.27, 0.57, 0.78])


def jitter_dye(rng: np.random.Generator, dye: np.ndarray, spread: float = 0.05) -> np.ndarray:
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
