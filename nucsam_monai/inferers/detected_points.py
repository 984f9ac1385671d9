"""The points that prompt a segmenter, whoever found them: a prompter, an annotator or the truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nucsam_monai.networks.sam.prompt_encoder import BOX_LABELS
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import NucleiPrediction


@dataclass(frozen=True)
class DetectedPoints:
    """One point for each of n nuclei of one image.

    Attributes:
        points: ``(n, 2)`` float as (x, y) in pixels, pixel centres at integers.
        scores: ``(n,)`` confidence.
        class_ids: ``(n,)`` integers from 0 on.
        sizes: ``(n, 2)`` width and height in pixels, for a network that is prompted by boxes; else None.
    """

    points: Tensor | NDArray[Any]
    scores: Tensor | NDArray[Any]
    class_ids: Tensor | NDArray[Any]
    sizes: Tensor | NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.points)


class ImagePoints(NamedTuple):
    """Checked points of one image.

    Attributes:
        xy: ``(n, 2)`` float64 position in pixels, pixel centres at integers.
        pixels: ``(n, 2)`` int64 column and row of the pixel that each point lies in.
        class_ids: ``(n,)`` int64.
        sizes: ``(n, 2)`` float64 width and height in pixels, where prompts are boxes.
    """

    xy: NDArray[np.float64]
    pixels: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    sizes: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.xy)

    def in_tiles(
        self, prompts: NDArray[np.int64], origins: NDArray[np.int64], tile_px: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return what a network is prompted with: points, or the corners of boxes, cut to their tiles.

        Args:
            prompts: ``(N,)`` rows.
            origins: ``(N, 2)`` first pixel as (x, y) of the tile that each is decoded in.
            tile_px: side of a tile.

        Returns:
            ``(N, 1, 2)`` or ``(N, 2, 2)`` in pixels of the tiles, and SAM's labels of them ``(N, 1)`` or ``(N, 2)``.
        """
        points = (self.xy[prompts] - origins)[:, None]
        if self.sizes is None:
            return points, np.ones(points.shape[:2], dtype=np.int64)
        half = self.sizes[prompts][:, None] / 2
        corners = np.concatenate([points - half, points + half], axis=1).clip(-0.5, tile_px - 0.5)
        return corners, np.tile(np.array(BOX_LABELS, dtype=np.int64), (len(corners), 1))


def check_points(
    found: DetectedPoints, image_size: tuple[int, int], class_names: Sequence[str]
) -> ImagePoints:
    """Check that every point lies in the image and has a class that exists.

    Args:
        found: points on the CPU or any other device.
        image_size: height and width in pixels.
        class_names: names of the classes.

    Raises:
        ConfigurationError: shapes that do not fit together, a point outside of the image or not finite, a size
            below zero or not finite, or an unknown class.
    """
    xy, scores, class_ids = map(_numbers, (found.points, found.scores, found.class_ids))
    if not xy.size:
        xy = xy.reshape(0, 2)
    if xy.ndim != 2 or xy.shape[1] != 2 or scores.shape != xy.shape[:1] or class_ids.shape != xy.shape[:1]:
        raise ConfigurationError(
            f"prompts: points {xy.shape}, scores {scores.shape} and class_ids {class_ids.shape}; "
            "expected (n, 2), (n,) and (n,)."
        )
    height, width = image_size
    # A pixel reaches half a pixel to each side of its centre; NaN is inside of nothing.
    inside = ((xy >= -0.5) & (xy <= np.array([width, height]) - 0.5)).all(axis=1)
    if not inside.all():
        first = int(np.argmin(inside))
        raise ConfigurationError(
            f"prompts: {np.count_nonzero(~inside)} of {len(xy)} points lie outside of the image; number "
            f"{first} is at x={xy[first, 0]:g}, y={xy[first, 1]:g}. Expected pixels (x, y) in an image "
            f"{width} wide and {height} high."
        )
    unknown = ~np.isin(class_ids, np.arange(len(class_names)))
    if unknown.any():
        raise ConfigurationError(
            f"prompts: class id {class_ids[unknown][0]:g}; expected a whole number in "
            f"0..{len(class_names) - 1} for the classes {', '.join(class_names)}."
        )
    # On the rim half a pixel may lie between a point and the nearest centre; no tile has anything beyond those.
    xy = np.clip(xy, 0, np.maximum([width - 1, height - 1], 0))
    pixels = np.floor(xy + 0.5).astype(np.int64)
    sizes = None if found.sizes is None else _checked_sizes(_numbers(found.sizes), len(xy))
    return ImagePoints(xy, pixels, class_ids.astype(np.int64), sizes)


def _checked_sizes(sizes: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    sizes = sizes if sizes.size else sizes.reshape(0, 2)
    if sizes.shape != (count, 2) or not (np.isfinite(sizes) & (sizes >= 0)).all():
        raise ConfigurationError(
            f"prompts: sizes {sizes.shape} from {sizes.min(initial=0):g} to {sizes.max(initial=0):g}; expected "
            f"({count}, 2) with finite widths and heights in pixels."
        )
    return sizes


def oracle_prompts(truth: NucleiPrediction) -> DetectedPoints:
    """Take the prompts from the ground truth, which shows what a perfect prompter would give.

    A point is the nucleus's centre of mass, or its pixel nearest to that where the centre lies outside. Source:
    PromptNucSeg, ablation with oracle points.

    Args:
        truth: annotated nuclei, for example of
            :func:`~nucsam_monai.utils.prediction.prediction_from_instances`.

    Example:
        >>> from nucsam_monai.utils.prediction import prediction_from_instances
        >>> oracle_prompts(prediction_from_instances(np.array([[0, 5, 5, 5]]))).points
        array([[2., 0.]])
    """
    table = truth.table
    points = np.stack([table["centroid_x_px"], table["centroid_y_px"]], axis=1)
    columns, rows = np.floor(points + 0.5).astype(np.int64).T
    for row in np.flatnonzero(truth.instances[rows, columns] != table["id"]):
        nucleus = table[row]
        x, y = nucleus["box_x_min_px"], nucleus["box_y_min_px"]
        crop = truth.instances[y : nucleus["box_y_max_px"], x : nucleus["box_x_max_px"]]
        own = np.argwhere(crop == nucleus["id"])[:, ::-1] + (x, y)
        points[row] = own[np.argmin(((own - points[row]) ** 2).sum(axis=1))]
    return DetectedPoints(points, np.ones(len(table)), table["class_id"].astype(np.int64))


def _numbers(values: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()  # NumPy has no bfloat16
    return np.asarray(values, dtype=np.float64)
