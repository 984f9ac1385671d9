"""Things that are not nuclei: red blood cells, specks of dust or pigment, loose fibres."""

import cv2
import numpy as np

from nucsam_monai.data.demo.optics import blur

_DISCS_PER_GROUP = 8
_SUBPIXEL_BITS = 4  # cv2 draws at 1/16 pixel


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
