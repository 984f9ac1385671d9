"""Random fields that tissue, chromatin and illumination are made of."""

import cv2
import numpy as np
from scipy import ndimage


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale_px: float) -> np.ndarray:
    """Return Gaussian noise with a Gaussian correlation of standard deviation ``scale_px``.

    Coarse fields are drawn on a coarse grid and interpolated, so that the cost does not grow with the scale.

    Args:
        rng: source of randomness.
        shape: ``(H, W)``.
        scale_px: blur of the underlying white noise in pixels; > 0.

    Returns:
        ``(H, W)`` float32 with expectation 0 and variance 1.
    """
    step = max(1, int(scale_px / 1.5))
    sigma = scale_px / step
    margin = 4
    grid = tuple(-(-length // step) + 2 * margin for length in shape)
    coarse = ndimage.gaussian_filter(rng.standard_normal(grid, dtype=np.float32), sigma, mode="wrap")
    coarse *= 2 * np.sqrt(np.pi) * sigma  # a Gaussian filter leaves the variance 1 / (4 pi sigma^2)
    if step > 1:
        coarse = cv2.resize(coarse, (grid[1] * step, grid[0] * step), interpolation=cv2.INTER_CUBIC)
    top = margin * step
    return np.ascontiguousarray(coarse[top : top + shape[0], top : top + shape[1]], dtype=np.float32)


def fractal_noise(
    rng: np.random.Generator, shape: tuple[int, int], scale_px: float, octaves: int = 3
) -> np.ndarray:
    """Return a sum of ``octaves`` smooth noises, each of half the scale and 0.6 times the amplitude.

    Returns:
        ``(H, W)`` float32 with expectation 0 and variance 1.
    """
    total = np.zeros(shape, dtype=np.float32)
    power = 0.0
    for octave in range(octaves):
        amplitude = 0.6**octave
        total += np.float32(amplitude) * smooth_noise(rng, shape, max(scale_px / 2**octave, 0.5))
        power += amplitude**2
    return total / np.float32(np.sqrt(power))


def fibre_noise(rng: np.random.Generator, angle: np.ndarray, length_px: int, width_px: float) -> np.ndarray:
    """Return noise drawn out along a field of directions (line integral convolution).

    Source: Cabral and Leedom, "Imaging vector fields using line integral convolution", SIGGRAPH 1993.

    Args:
        rng: source of randomness.
        angle: ``(H, W)`` direction in radians, 0 along the columns.
        length_px: how far a fibre reaches to either side of a pixel.
        width_px: the fibres' width, as the scale of the noise that is drawn out.

    Returns:
        ``(H, W)`` float32 with mean 0 and variance 1.
    """
    if width_px >= 2:  # wide fibres have no detail that half the resolution would lose
        half = fibre_noise(rng, angle[::2, ::2], length_px // 2, width_px / 2)
        return cv2.resize(half, angle.shape[::-1], interpolation=cv2.INTER_CUBIC)
    grain = smooth_noise(rng, angle.shape, width_px)
    step_x, step_y = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    rows, columns = np.indices(angle.shape, dtype=np.float32)
    total = grain.copy()
    stride = max(1.0, width_px)
    for sign in (-stride, stride):
        x, y = columns.copy(), rows.copy()
        for _ in range(max(1, round(length_px / stride))):
            direction_x = cv2.remap(step_x, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
            direction_y = cv2.remap(step_y, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
            x += np.float32(sign) * direction_x
            y += np.float32(sign) * direction_y
            total += cv2.remap(grain, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    total -= total.mean()
    return total / max(float(total.std()), 1e-6)


def soft_step(field: np.ndarray, threshold: float, softness: float) -> np.ndarray:
    """Return a smooth 0-to-1 step of a field at ``threshold``; ``softness`` is in the field's unit."""
    position = np.clip((field - threshold) / softness * 0.5 + 0.5, 0, 1)
    return (position * position * (3 - 2 * position)).astype(np.float32)
