"""Lay out tissue and nuclei: where nuclei lie and what outlines they have, before anything is stained or lit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from scipy import ndimage

CLASS_NAMES = ("round", "elongated")
ROUND, ELONGATED = range(len(CLASS_NAMES))
_SMALLEST_AREA_PX = 30
_LARGEST_RADIUS_PX = 20.0


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


@dataclass(frozen=True)
class SceneRecipe:
    """Configure how a domain's scenes are laid out; lengths in pixels, counts per 256 x 256 pixels.

    Attributes:
        nuclei: fewest and most nuclei.
        round_radius_px: smallest and largest mean radius of round nuclei.
        elongated_share: fraction of elongated nuclei outside the epithelium.
        epithelium_share: fraction of the area that is epithelium (only round nuclei).
        lumen_share: fraction of the area that is an empty lumen.
        crowding: probability that a nucleus is placed against one that is there already.
        irregularity: amplitude of the outline's Fourier terms relative to the radius.
    """

    nuclei: tuple[int, int]
    round_radius_px: tuple[float, float] = (6.5, 11.0)
    elongated_share: float = 0.7
    epithelium_share: float = 0.55
    lumen_share: float = 0.0
    crowding: float = 0.5
    irregularity: float = 0.1


@dataclass(frozen=True)
class Nucleus:
    """One nucleus in its bounding box.

    Attributes:
        class_id: index into :data:`CLASS_NAMES`.
        box: rows and columns of the bounding box in the image.
        mask: ``(h, w)`` bool, the pixels that belong to it.
        radial: ``(h, w)`` float32, 0 in the centre, 1 on the outline.
        centre_px: row and column of the centre in the image.
        radius_px: geometric mean of its semi-axes.
    """

    class_id: int
    box: tuple[slice, slice]
    mask: np.ndarray
    radial: np.ndarray
    centre_px: tuple[float, float]
    radius_px: float


@dataclass(frozen=True)
class Tissue:
    """Hold the tissue around the nuclei; every map is ``(H, W)`` float32.

    Attributes:
        epithelium: 1 in epithelium, 0 in stroma.
        lumen: 1 where there is no tissue.
        flow: direction of the stroma's fibres in radians.
    """

    epithelium: np.ndarray
    lumen: np.ndarray
    flow: np.ndarray


@dataclass(frozen=True)
class Scene:
    """The geometry of one image.

    Attributes:
        instances: ``(H, W)`` int32, 0 = background, ids 1..n; nucleus ``i`` has id ``i + 1``.
        nuclei: the nuclei, ordered by id.
        tissue: tissue around the nuclei.
    """

    instances: np.ndarray
    nuclei: tuple[Nucleus, ...]
    tissue: Tissue

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.instances.shape
        return height, width

    @property
    def is_elongated(self) -> np.ndarray:
        """``(n,)`` bool: which nuclei are elongated."""
        return np.array([nucleus.class_id == ELONGATED for nucleus in self.nuclei], dtype=bool)

    def paint(self, profile: Callable[[Nucleus], np.ndarray]) -> np.ndarray:
        """Return the ``(H, W)`` float32 map of each nucleus's ``(h, w)`` values, 0 in the background."""
        canvas = np.zeros(self.shape, dtype=np.float32)
        for nucleus in self.nuclei:
            canvas[nucleus.box][nucleus.mask] = profile(nucleus)[nucleus.mask]
        return canvas

    def spread(self, per_nucleus: np.ndarray) -> np.ndarray:
        """Return the ``(H, W)`` float32 map of a value per nucleus, 0 in the background."""
        return np.concatenate([[0], per_nucleus]).astype(np.float32)[self.instances]


def draw_scene(
    rng: np.random.Generator, shape: tuple[int, int], recipe: SceneRecipe, scale: float = 1.0
) -> Scene:
    """Lay out tissue and nuclei; nuclei touch but never overlap: the first one keeps a pixel.

    Args:
        rng: source of randomness.
        shape: ``(H, W)`` in pixels.
        recipe: the domain's layout.
        scale: factor on all radii (a slide's magnification).
    """
    tissue = Tissue(
        epithelium=_largest_values(smooth_noise(rng, shape, 34), recipe.epithelium_share, softness=0.25),
        flow=(rng.uniform(0, np.pi) + 0.7 * smooth_noise(rng, shape, 45)).astype(np.float32),
        lumen=_largest_values(smooth_noise(rng, shape, 13), recipe.lumen_share, softness=0.15),
    )
    placer = _Placer(rng, shape, recipe, scale, tissue)
    per_field = int(rng.integers(recipe.nuclei[0], recipe.nuclei[1] + 1))
    count = round(per_field * shape[0] * shape[1] / 256**2 / scale**2)
    for _ in range(6 * count):
        if len(placer.nuclei) >= count:
            break
        placer.try_one()
    return Scene(placer.instances, tuple(placer.nuclei), tissue)


def _largest_values(field: np.ndarray, share: float, softness: float) -> np.ndarray:
    """Return a soft map that is 1 on the ``share`` of the area where the field is largest."""
    if share <= 0:
        return np.zeros_like(field)
    return soft_step(field, float(np.quantile(field, 1 - share)), softness)


class _Placer:
    """Add one nucleus after another to a label map."""

    def __init__(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int],
        recipe: SceneRecipe,
        scale: float,
        tissue: Tissue,
    ) -> None:
        self.instances = np.zeros(shape, dtype=np.int32)
        self._shape = shape
        self.nuclei: list[Nucleus] = []
        self._rng = rng
        self._recipe = recipe
        self._scale = scale
        self._tissue = tissue

    def try_one(self) -> None:
        """Draw a position and an outline and keep the nucleus where it fits."""
        row, column = self._propose_centre()
        height, width = self._shape
        inside = min(max(int(row), 0), height - 1), min(max(int(column), 0), width - 1)
        if self.instances[inside] or self._tissue.lumen[inside] > 0.3:
            return
        in_stroma = self._tissue.epithelium[inside] < 0.5
        elongated = in_stroma and self._rng.random() < self._recipe.elongated_share
        if in_stroma and not elongated and self._rng.random() < 0.4:  # stroma is sparser than epithelium
            return
        self._place((row, column), ELONGATED if elongated else ROUND, float(self._tissue.flow[inside]))

    def _propose_centre(self) -> tuple[float, float]:
        height, width = self._shape
        if self.nuclei and self._rng.random() < self._recipe.crowding:
            neighbour = self.nuclei[int(self._rng.integers(len(self.nuclei)))]
            distance = neighbour.radius_px * self._rng.uniform(1.7, 2.3)
            direction = self._rng.uniform(0, 2 * np.pi)
            row = neighbour.centre_px[0] + distance * np.sin(direction)
            column = neighbour.centre_px[1] + distance * np.cos(direction)
            if -4 <= row < height + 4 and -4 <= column < width + 4:
                return row, column
        return self._rng.uniform(-4, height + 4), self._rng.uniform(-4, width + 4)

    def _place(self, centre: tuple[float, float], class_id: int, flow_angle: float) -> None:
        axes = _draw_axes(self._rng, self._recipe, self._scale, class_id, flow_angle)
        box = _box_round(centre, int(1.4 * axes.major_px) + 2, self.instances.shape)
        radial = _radial_coordinate(self._rng, axes, self._recipe.irregularity, centre, box)
        whole = radial <= 1
        mask = whole & (self.instances[box] == 0)
        if mask.sum() < max(0.85 * whole.sum(), _SMALLEST_AREA_PX):
            return
        part_count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
        if part_count > 2:  # a neighbour cut a tip off
            mask = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
        radius = float(np.sqrt(axes.major_px * axes.minor_px))
        self.nuclei.append(Nucleus(class_id, box, mask, radial, centre, radius))
        self.instances[box][mask] = len(self.nuclei)


class _Axes(NamedTuple):
    """An ellipse by its semi-axes and angle; ``bend`` curves the major axis (1 / px)."""

    major_px: float
    minor_px: float
    angle: float
    bend: float


def _draw_axes(
    rng: np.random.Generator, recipe: SceneRecipe, scale: float, class_id: int, flow_angle: float
) -> _Axes:
    if class_id == ELONGATED:
        minor = rng.uniform(4.2, 6.0) * scale
        major = min(minor * rng.uniform(2.0, 3.2), _LARGEST_RADIUS_PX)
        return _Axes(major, minor, flow_angle + rng.normal(0, 0.2), rng.normal(0, 0.13) / major)
    low, high = recipe.round_radius_px
    radius = scale * (low + (high - low) * rng.beta(1.6, 2.2))
    if rng.random() < 0.04:
        radius *= 1.5  # a few giant nuclei
    stretch = np.sqrt(rng.uniform(1.0, 1.45))
    major, minor = min(radius * stretch, _LARGEST_RADIUS_PX), min(radius / stretch, _LARGEST_RADIUS_PX)
    return _Axes(major, minor, rng.uniform(0, np.pi), 0.0)


def _box_round(centre: tuple[float, float], reach: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    row, column = int(centre[0]), int(centre[1])
    rows = slice(max(0, row - reach), min(shape[0], row + reach + 1))
    return rows, slice(max(0, column - reach), min(shape[1], column + reach + 1))


def _radial_coordinate(
    rng: np.random.Generator,
    axes: _Axes,
    irregularity: float,
    centre: tuple[float, float],
    box: tuple[slice, slice],
) -> np.ndarray:
    """Return the ``(h, w)`` distance from the centre relative to the outline.

    The outline is a bent ellipse whose radius is deformed by Fourier terms of order 2 to 5.
    """
    rows = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None] - np.float32(centre[0])
    columns = np.arange(box[1].start, box[1].stop, dtype=np.float32)[None] - np.float32(centre[1])
    cosine, sine = np.float32(np.cos(axes.angle)), np.float32(np.sin(axes.angle))
    along = columns * cosine + rows * sine
    across = rows * cosine - columns * sine
    across = across - np.float32(axes.bend) * (along**2 - np.float32(axes.major_px**2 / 3))
    u, v = along / np.float32(axes.major_px), across / np.float32(axes.minor_px)
    theta = np.arctan2(v, u)
    outline = np.ones_like(theta)
    for order in range(2, 6):
        amplitude = irregularity * rng.normal() * (2 / order) ** 1.5
        outline += np.float32(amplitude) * np.cos(order * theta + np.float32(rng.uniform(0, 2 * np.pi)))
    return np.hypot(u, v) / np.clip(outline, 0.6, 1.4)
