"""Resize images so that their nuclei have a size that the network knows."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from monai.inferers import Inferer
from torch import Tensor
from torch.nn import functional

from nucsam_monai.inferers.semantic import Points, Predictor, ResizeInferer, TileInferer, resized_points
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.instances import InstanceRule, scored_distance_instances

logger = logging.getLogger(__name__)

TARGET_DIAMETER_PX = 20.0
"""The size that nuclei are brought to: the median of the training images."""

KNOWN_DIAMETERS_PX = (11.0, 30.0)
"""Nuclei of stained tissue in this range are segmented as well as at the target."""

TRAINED_MPP = 0.25
_CERTAIN_SCORE = 0.6
_ENLARGED, _REDUCED = (2.0, 4.0), (0.25, 0.5)
_SCALES = (0.1, 4.0)
_MORE_NUCLEI = 1.2
_FEWEST_NUCLEI = 5
_FULLEST = 0.6


class Look(NamedTuple):
    """Hold the estimated scale of an image.

    Attributes:
        nuclei: number of nuclei found.
        diameter_px: their median diameter in pixels of the image; NaN without nuclei.
        score: their mean score; 0 without nuclei.
        covered: fraction of what was looked at that they cover.
        area_px: area that was measured, in pixels of the image.
    """

    nuclei: int
    diameter_px: float
    score: float
    covered: float
    area_px: float


class ScaledInferer(Inferer):
    """Resize an image for another inferer, and its output maps back to the image's size.

    With ``auto`` the image is looked at first: as a whole if it has few tiles, else in four tiles. Small nuclei are
    enlarged; if the network is unsure of what it finds, it looks at other scales, see :func:`choose_scale`. All else
    stays at its own scale, in one pass.

    Args:
        inferer: gives the maps. A :class:`ResizeInferer` gives every image the size it was trained at, so nothing is
            resized before.
        diameter: diameter of the nuclei in pixels, ``"auto"``, or None for no resizing.
        mpp: micrometres per pixel of the images, of which :data:`TRAINED_MPP` are expected; None where unknown.
        instances: how the maps are split; only for ``distance`` they show how large nuclei are.

    Raises:
        ConfigurationError: a diameter or micrometres per pixel that are not positive, both given, or one given to a
            network that sees images stretched.
    """

    def __init__(
        self,
        inferer: TileInferer | ResizeInferer,
        diameter: float | Literal["auto"] | None = "auto",
        mpp: float | None = None,
        instances: InstanceRule = "distance",
    ) -> None:
        super().__init__()
        for name, value in (("diameter", diameter), ("mpp", mpp)):
            if isinstance(value, bool) or not (
                value is None or (name == "diameter" and value == "auto") or _is_positive(value)
            ):
                known = (
                    "a positive number of pixels, 'auto' or null"
                    if name == "diameter"
                    else "micrometres per pixel"
                )
                raise ConfigurationError(f"{name} {value!r}: expected {known}.")
        if mpp is not None and _is_positive(diameter):
            raise ConfigurationError(
                f"diameter {diameter} and mpp {mpp}: expected one of them. Leave one out."
            )
        if isinstance(inferer, ResizeInferer) and (mpp is not None or _is_positive(diameter)):
            raise ConfigurationError(
                f"diameter {diameter} and mpp {mpp}: found with fit 'resize', which stretches every image to one size. "
                "Leave them out."
            )
        self.inferer = inferer
        self.diameter = diameter
        self.mpp = mpp
        self.instances = instances

    def __call__(
        self, inputs: Tensor, network: Predictor, *args: Any, points: Points | None = None, **kwargs: Any
    ) -> Tensor:
        """Return ``(B, n, H, W)`` from ``(B, 3, H, W)`` of any size."""

        def maps_of(image: Tensor, scale: float, points: Points | None = None) -> Tensor:
            return self._maps(image, scale, network, args, points, kwargs)

        scale, seen = self._choose(inputs, maps_of, points)
        return seen[scale] if scale in seen else maps_of(inputs, scale, points)

    def scale_of(self, inputs: Tensor, network: Predictor) -> float:
        """Return the factor by which an image is resized; of a large one :func:`part_to_look_at` is enough."""
        return self._choose(inputs, lambda image, scale, *_: self._maps(image, scale, network, (), None, {}))[
            0
        ]

    def _choose(
        self, inputs: Tensor, maps_of: Callable[..., Tensor], points: Points | None = None
    ) -> tuple[float, dict[float, Tensor]]:
        """Return the scale of an image, and the maps of all of it that were looked at, by their scale."""
        seen: dict[float, Tensor] = {}
        if isinstance(self.inferer, ResizeInferer):
            return 1.0, seen
        if self.mpp is not None or self.diameter != "auto":
            return self._told_scale(), seen
        side = self.inferer.tile_px

        def look(scale: float) -> Look:
            if max(inputs.shape[-2:]) * scale <= 2 * side:
                seen[scale] = maps_of(inputs, scale, points)
                return self._look(seen[scale])
            return _join([self._look(maps_of(one, scale)) for one in _windows(inputs, round(side / scale))])

        return choose_scale(look(1.0), look), seen

    def _look(self, maps: Tensor) -> Look:
        """Judge the nuclei's scale by maps of the image's size."""
        if self.instances == "distance" and maps.shape[1] == 2:
            return _look_of(maps)
        # Without a distance map touching nuclei are one, and their size says nothing.
        return Look(1, TARGET_DIAMETER_PX, 1.0, 0.0, float(maps.shape[-2] * maps.shape[-1]))

    def _told_scale(self) -> float:
        """Return the scale that follows from the user's settings."""
        if self.mpp is not None:
            return float(np.clip(self.mpp / TRAINED_MPP, *_SCALES))
        if self.diameter is None or KNOWN_DIAMETERS_PX[0] <= float(self.diameter) <= KNOWN_DIAMETERS_PX[1]:
            return 1.0
        return float(np.clip(TARGET_DIAMETER_PX / float(self.diameter), *_SCALES))

    def _maps(
        self,
        image: Tensor,
        scale: float,
        network: Predictor,
        args: tuple[Any, ...],
        points: Points | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Return the maps of an image, found at a scale, at the image's size."""
        own = {} if points is None else {"points": points}
        if scale == 1.0:
            return self.inferer(image, network, *args, **own, **kwargs)
        height, width = image.shape[-2:]
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        resized = functional.interpolate(image, size=size, mode="bilinear", antialias=scale < 1)
        if points is not None:
            own["points"] = resized_points(points, size[1] / width, size[0] / height)
        maps = self.inferer(resized, network, *args, **own, **kwargs)
        return functional.interpolate(maps, size=(height, width), mode="bilinear", antialias=scale > 1)


def choose_scale(native: Look, look: Callable[[float], Look]) -> float:
    """Return the factor by which an image is best resized before it is segmented.

    Small nuclei are enlarged to the target, and an image whose nuclei the network is certain of stays as it is.
    Otherwise the scale of the highest confidence is chosen, under two conditions. An enlarged image shows more
    nuclei on the same area, since a few certain ones among many lost are not a gain. A reduced one shows several
    nuclei, on no less of the image than before and not nearly everywhere, since what is reduced too far looks like
    one large nucleus. An image without nuclei, neither as it is nor at twice its size, is not looked at again.

    Args:
        native: the look at the image as it is.
        look: gives the look at the image resized by a factor.
    """
    if native.diameter_px < KNOWN_DIAMETERS_PX[0] and native.covered <= _FULLEST:
        scale = float(min(TARGET_DIAMETER_PX / native.diameter_px, _SCALES[1]))
    elif native.score >= _CERTAIN_SCORE:
        return 1.0
    else:
        scale, score = 1.0, native.score
        for other in (*_ENLARGED, *_REDUCED):
            seen = look(other)
            if not native.nuclei and not seen.nuclei and other == _ENLARGED[0]:
                break
            if other > 1:
                shows_more = seen.nuclei * native.area_px >= _MORE_NUCLEI * native.nuclei * seen.area_px
            else:
                shows_more = (
                    seen.nuclei >= _FEWEST_NUCLEI and 0.8 * native.covered <= seen.covered <= _FULLEST
                )
            if shows_more and seen.score > score:
                scale, score = other, seen.score
    if scale != 1.0:
        logger.info("nuclei of about %.0f px: segmented at %.2g times the size.", native.diameter_px, scale)
    return scale


def _look_of(maps: Tensor) -> Look:
    """Judge the nuclei's scale by foreground and distance map ``(1, 2, H, W)``."""
    area = float(maps.shape[-2] * maps.shape[-1])
    foreground, distance = maps[0].float().cpu().numpy()
    instances, scores = scored_distance_instances(foreground, distance)
    if not len(scores):
        return Look(0, float("nan"), 0.0, 0.0, area)
    areas = np.bincount(instances.ravel())[1:]
    diameter = float(np.median(2 * np.sqrt(areas / np.pi)))
    return Look(len(scores), diameter, float(scores.mean()), float(areas.sum() / area), area)


def _join(looks: list[Look]) -> Look:
    """Combine the looks of several windows, each weighted by its nuclei."""
    area = sum(look.area_px for look in looks)
    seen = [look for look in looks if look.nuclei]
    nuclei = sum(look.nuclei for look in seen)
    if not nuclei:
        return Look(0, float("nan"), 0.0, 0.0, area)
    diameters = np.repeat([look.diameter_px for look in seen], [look.nuclei for look in seen])
    score = sum(look.nuclei * look.score for look in seen) / nuclei
    covered = sum(look.area_px * look.covered for look in seen) / area
    return Look(nuclei, float(np.median(diameters)), score, covered, area)


def _windows(image: Tensor, side: int) -> Iterator[Tensor]:
    """Yield square windows ``(1, 3, side, side)`` about the centres of an image's quarters, inside the image."""
    height, width = image.shape[-2:]
    for row in (1, 3):
        for column in (1, 3):
            y = int(np.clip(row * height // 4 - side // 2, 0, max(0, height - side)))
            x = int(np.clip(column * width // 4 - side // 2, 0, max(0, width - side)))
            yield image[:1, :, y : y + side, x : x + side]


def part_to_look_at(image: np.ndarray, tile_px: int) -> np.ndarray:
    """Return the surroundings of the centres of a large image's quarters as one image, whose windows are the same.

    Args:
        image: ``(H, W, 3)``; a side of up to twelve tiles is kept.
        tile_px: side length of the network's tiles; a window has up to four times this side length.
    """
    half = 3 * tile_px
    for axis in (0, 1):
        size = image.shape[axis]
        if size > 4 * half:
            starts = [part * size // 4 - half for part in (1, 3)]
            image = np.concatenate([image.take(range(a, a + 2 * half), axis) for a in starts], axis)
    return image


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
