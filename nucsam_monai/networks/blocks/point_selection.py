"""From a probability of nucleus to point prompts (SAC, selection of the auto prompts)."""

import math
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
import torch
from torch import Tensor

from nucsam_monai.utils.errors import ConfigurationError

SelectionRule = Literal["O", "R"]
"""``O`` takes the centres of components, ``R`` random pixels."""

DEFAULT_TAU: dict[SelectionRule, float] = {"O": 0.5, "R": 0.9}
"""Probability from which on a pixel is a candidate; the paper does not give it."""

_PADDING = -1


class PointPrompts(NamedTuple):
    """The points of B images, K each.

    Attributes:
        coordinates: ``(B, K, 2)`` float32 as (x, y) in pixels.
        labels: ``(B, K)`` int64: 1 nucleus, 0 background, -1 padding.
    """

    coordinates: Tensor
    labels: Tensor


@torch.no_grad()
def select_points(
    probability: Tensor,
    count: int,
    rule: SelectionRule = "O",
    tau: float | None = None,
    *,
    seed: int | None = None,
) -> PointPrompts:
    """Choose ``count`` points on nuclei and as many on background in every image.

    Candidates are the pixels whose probability of the wanted class, p or 1 - p, is at least ``tau``. Fewer
    candidates than points leave padding. No pixel is chosen twice.

    - ``R`` draws candidates uniformly.
    - ``O`` takes one centroid per 8-connected component on nuclei; where it lies outside of its component,
      the component's pixel that is farthest from the outside. Of more components than points random ones are
      taken, with probability proportional to their area; fewer are filled up by ``R``. Background is mostly
      one component around the nuclei, and its centroid means nothing: there the pixel that is farthest
      from everything else is taken, then the one that is farthest from that and from the points so far.
      Beyond the image's border nothing is background.

    Args:
        probability: ``(B, 1, H, W)`` probability of nucleus.
        count: points of each label, 0 or more.
        rule: ``O`` or ``R``.
        tau: threshold in [0, 1]; 0.5 for ``O`` and 0.9 for ``R`` by default.
        seed: what every image draws from, so that its points depend on nothing else; None draws from
            PyTorch's global generator.

    Returns:
        K = 2 * ``count`` points, first those on nuclei, on the device of ``probability``.

    Raises:
        ConfigurationError: an unknown rule, ``count`` or ``tau`` outside of what is permitted, or a call while
            a graph is traced, which would keep the points of its example for ever.

    Example:
        >>> probability = torch.zeros(1, 1, 9, 9)
        >>> probability[..., 1:4, 5:8] = 1
        >>> select_points(probability, count=1).coordinates
        tensor([[[6., 2.],
                 [2., 6.]]])
    """
    if rule not in get_args(SelectionRule):
        raise ConfigurationError(f"selection '{rule}': expected 'O' (centroids) or 'R' (random).")
    tau = DEFAULT_TAU[rule] if tau is None else tau
    if count < 0 or not 0 <= tau <= 1:
        raise ConfigurationError(
            f"{count} points with tau {tau}: expected 0 or more, and a probability from 0 to 1."
        )
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise ConfigurationError(
            "points are chosen outside of a traced graph. Trace the network without auto points "
            "(generator.n_points_test 0) and give it the points as an input."
        )
    images = len(probability)
    nuclei = (probability[:, 0] >= tau).cpu().numpy()
    background = (1 - probability[:, 0] >= tau).cpu().numpy()
    seeds = torch.randint(2**62, (images,)).tolist() if seed is None else [seed] * images
    coordinates = np.zeros((images, 2, count, 2), dtype=np.float32)
    labels = np.full((images, 2, count), _PADDING, dtype=np.int64)
    for image in range(images):
        rng = np.random.default_rng(seeds[image])
        if rule == "R":
            found = [_random_pixels(mask[image], count, rng) for mask in (nuclei, background)]
        else:
            found = [_component_pixels(nuclei[image], count, rng), _farthest_pixels(background[image], count)]
        for side, (label, pixels) in enumerate(zip((1, 0), found, strict=True)):
            coordinates[image, side, : len(pixels)] = pixels
            labels[image, side, : len(pixels)] = label
    return PointPrompts(
        torch.from_numpy(coordinates).reshape(images, 2 * count, 2).to(probability.device),
        torch.from_numpy(labels).reshape(images, 2 * count).to(probability.device),
    )


def _random_pixels(candidates: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw at most ``count`` different pixels (x, y) of a ``(H, W)`` mask uniformly."""
    flat = np.flatnonzero(candidates)
    drawn = rng.choice(flat, size=min(count, len(flat)), replace=False)
    return np.stack([drawn % candidates.shape[1], drawn // candidates.shape[1]], axis=1)


def _component_pixels(candidates: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return at most ``count`` centres (x, y) of components, filled up with random pixels."""
    number, ids, stats, centroids = cv2.connectedComponentsWithStats(
        candidates.astype(np.uint8), connectivity=8
    )
    # The smallest of exponential times with rate `area`: draws in proportion to area without replacement.
    times = rng.exponential(size=number - 1) / stats[1:, cv2.CC_STAT_AREA]
    chosen = 1 + np.argsort(times)[:count]
    centres = [_centre(ids, int(component), stats, centroids) for component in chosen]
    pixels = np.array(centres, dtype=np.int64).reshape(-1, 2)
    left = candidates.copy()
    left[pixels[:, 1], pixels[:, 0]] = False
    return np.concatenate([pixels, _random_pixels(left, count - len(pixels), rng)])


def _centre(ids: np.ndarray, component: int, stats: np.ndarray, centroids: np.ndarray) -> tuple[int, int]:
    """Return the pixel (x, y) that stands for one component."""
    x, y = (math.floor(value + 0.5) for value in centroids[component])
    if ids[y, x] == component:
        return x, y
    left, top, width, height = stats[component, : cv2.CC_STAT_AREA].tolist()
    box = ids[top : top + height, left : left + width] == component
    y, x = np.unravel_index(_squared_distances(box).argmax(), box.shape)
    return int(x) + left, int(y) + top


def _farthest_pixels(candidates: np.ndarray, count: int) -> np.ndarray:
    """Return at most ``count`` pixels (x, y), each as far as possible from the outside and those before."""
    distances = _squared_distances(candidates)
    pixels: list[tuple[int, int]] = []
    while len(pixels) < count:
        y, x = (int(index) for index in np.unravel_index(distances.argmax(), distances.shape))
        if distances[y, x] == 0:
            break
        pixels.append((x, y))
        # No distance is larger than this one, so that none changes farther away.
        reach = math.isqrt(int(distances[y, x]))
        top, left = max(0, y - reach), max(0, x - reach)
        near = distances[top : y + reach + 1, left : x + reach + 1]
        rows = np.arange(top, top + near.shape[0], dtype=np.int32) - y
        columns = np.arange(left, left + near.shape[1], dtype=np.int32) - x
        np.minimum(near, rows[:, None] ** 2 + columns**2, out=near)
    return np.array(pixels, dtype=np.int64).reshape(-1, 2)


def _squared_distances(mask: np.ndarray) -> np.ndarray:
    """Return each pixel's squared distance to the nearest one outside of ``mask``, border included.

    Squared, distances are whole numbers, and equal ones stay equal.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    distances = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return np.rint(np.square(distances)).astype(np.int32)
