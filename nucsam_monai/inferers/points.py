"""Find the points that prompt a segmenter: predicted by a prompter, given by a user, or from the ground truth."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from nucsam_monai.inferers.tiling import EncodedTiles, TileEncoder, Tiling, plan_tiles, tiles_of
from nucsam_monai.networks.prompter import Prompter, PrompterOutput
from nucsam_monai.networks.promptnucseg import PromptNucSeg
from nucsam_monai.networks.sam.prompt_encoder import BOX_LABELS
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import NucleiPrediction

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectedPoints:
    """Hold one point for each of n nuclei of one image.

    Attributes:
        points: ``(n, 2)`` float as (x, y) in pixels, pixel centres at integers.
        scores: ``(n,)`` confidence.
        class_ids: ``(n,)`` integers from 0.
        sizes: ``(n, 2)`` width and height in pixels for networks that are prompted by boxes; else None.
    """

    points: Tensor | NDArray[Any]
    scores: Tensor | NDArray[Any]
    class_ids: Tensor | NDArray[Any]
    sizes: Tensor | NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.points)


class ImagePoints(NamedTuple):
    """Hold the checked points of one image.

    Attributes:
        xy: ``(n, 2)`` float64 position in pixels, pixel centres at integers.
        pixels: ``(n, 2)`` int64 column and row of the pixel that each point lies in.
        class_ids: ``(n,)`` int64.
        sizes: ``(n, 2)`` float64 width and height in pixels if prompts are boxes.
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
        """Return the prompts of a network: points, or the corners of boxes, clipped to their tiles.

        Args:
            prompts: ``(N,)`` indices of points.
            origins: ``(N, 2)`` first pixel as (x, y) of the tile in which each point is decoded.
            tile_px: side length of a tile.

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
    """Check that every point lies in the image and has a known class.

    Args:
        found: points on the CPU or any other device.
        image_size: height and width in pixels.
        class_names: names of the classes.

    Raises:
        ConfigurationError: shapes do not fit each other, a point lies outside the image or is not finite, a size is
            negative or not finite, or a class is unknown.
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
    # A pixel reaches half a pixel to each side of its centre; NaN is inside nothing.
    inside = ((xy >= -0.5) & (xy <= np.array([width, height]) - 0.5)).all(axis=1)
    if not inside.all():
        first = int(np.argmin(inside))
        raise ConfigurationError(
            f"prompts: {np.count_nonzero(~inside)} of {len(xy)} points lie outside the image; number "
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
    """Take one point per nucleus from the ground truth, like a perfect prompter (PromptNucSeg, oracle points).

    The point is the centre of mass of the nucleus, or the pixel of the nucleus that is nearest to it.

    Args:
        truth: annotated nuclei, for example from
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


@torch.no_grad()
def select_points(
    output: PrompterOutput, image_size: tuple[int, int], *, mask_filter: bool, radius: float
) -> DetectedPoints:
    """Select one anchor point per nucleus, in descending order of score (PromptNucSeg, nuclei prompter and inference).

    Anchors whose most likely class is background are dropped. Points are clipped to the image, the mask filter (MAPF)
    removes points where the auxiliary mask has no nucleus, and of points close together only the best is kept.

    Args:
        output: output of the network for one image.
        image_size: height and width of the image in pixels.
        mask_filter: whether to use the auxiliary mask.
        radius: largest distance in pixels between points of the same nucleus.

    Raises:
        ConfigurationError: the output is of several images, the radius is negative, or the mask filter has no mask.
    """
    _check_request(output, mask_filter, radius)
    points = output.points[0].float().cpu().numpy()
    probabilities = output.class_logits[0].float().softmax(dim=-1).cpu().numpy()
    class_ids = probabilities.argmax(axis=1)
    scores = probabilities.max(axis=1)
    usable = np.isfinite(points).all(axis=1) & np.isfinite(scores)
    if not usable.all():
        logger.warning(
            "%d of %d points are not finite and were dropped; the weights are damaged or have diverged.",
            len(usable) - usable.sum(),
            len(usable),
        )
    keep = usable & (class_ids < probabilities.shape[1] - 1)
    chosen = np.flatnonzero(keep)
    height, width = image_size
    points = points.clip(0, np.array([width - 1, height - 1], dtype=np.float32))
    if mask_filter and output.mask_logits is not None:
        x, y = points[chosen].astype(np.int64).T
        on_nucleus = output.mask_logits[0, 0].float().cpu().numpy()[y, x] > 0  # logit 0 is probability 0.5
        chosen = chosen[on_nucleus]
    chosen = chosen[suppress_near_points(points[chosen], scores[chosen], radius)]
    sizes = None if output.sizes is None else output.sizes[0].float().cpu().numpy()[chosen]
    return DetectedPoints(points[chosen], scores[chosen], class_ids[chosen], sizes)


def suppress_near_points(points: np.ndarray, scores: np.ndarray, radius: float) -> np.ndarray:
    """Drop points within ``radius`` of a better point (non-maximum suppression).

    Args:
        points: ``(n, 2)``, finite.
        scores: ``(n,)``; if scores are equal, the first point is kept.
        radius: distance in the unit of ``points``; points at exactly this distance are dropped.

    Returns:
        ``(k,)`` int64 indices of the kept points in descending order of score.

    Example:
        >>> suppress_near_points(np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]]), np.array([0.5, 0.9, 0.6]), 2)
        array([1, 2])
    """
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    tree = KDTree(points)
    dropped = np.zeros(len(points), dtype=bool)
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        if dropped[index]:
            continue
        kept.append(index)
        dropped[tree.query_ball_point(points[index], radius)] = True
    return np.array(kept, dtype=np.int64)


FindPoints = Callable[[Tensor], DetectedPoints]
"""A prompter: finds the nuclei of one image ``(1, 3, H, W)``."""


@runtime_checkable
class TilePrompter(Protocol):
    """Find points in the embeddings of tiles, with a prompter that shares the segmenter's encoder."""

    def find_in_tiles(self, encoded: Sequence[EncodedTiles], tiling: Tiling) -> DetectedPoints:
        """Find the nuclei of an image from all of its encoded tiles."""
        ...


class PointFinder:
    """Find one point per nucleus in a whole image, or classify given points.

    A prompter may normalise over its whole input, so that each point depends on the whole image. For parts of a larger
    image, such as a slide, ``in_tiles`` makes the points independent of the size of the part.

    Args:
        prompter: network on the device of the images.
        mask_filter: drop points where the auxiliary mask has no nucleus (PromptNucSeg, MAPF).
        radius_px: largest distance between points of the same nucleus.
        tile_px: side length of a tile.
        overlap_px: overlap of adjacent tiles in pixels.
        in_tiles: run the prompter on the tiles of an image one by one.

    Raises:
        ConfigurationError: ``mask_filter`` is set for a prompter without auxiliary mask.

    Example::

        nuclei = PromptedInferer()(image, segmenter, PointFinder(prompter, mask_filter=True, radius_px=12))
    """

    def __init__(
        self,
        prompter: Prompter,
        *,
        mask_filter: bool = False,
        radius_px: float = 12.0,
        tile_px: int = 256,
        overlap_px: int = 64,
        in_tiles: bool = False,
    ) -> None:
        _check_mask_filter(prompter, mask_filter)
        self.prompter = prompter
        self.mask_filter = mask_filter
        self.radius_px = radius_px
        self.tile_px = tile_px
        self.overlap_px = overlap_px
        self.in_tiles = in_tiles

    @torch.no_grad()
    def __call__(self, image: Tensor) -> DetectedPoints:
        """Find the nuclei of one normalised image ``(1, 3, H, W)``, in descending order of score."""
        if self.in_tiles:
            tiling = plan_tiles(image.shape[-2:], self.tile_px, self.overlap_px)
            # One by one: a network's output depends in its last bits on the number of images in the batch.
            outputs = (
                (tile, self.prompter(tiling.cut(image, np.array([tile])), with_mask=self.mask_filter))
                for tile in range(len(tiling))
            )
            return _points_of_tiles(outputs, tiling, mask_filter=self.mask_filter, radius=self.radius_px)
        output = self.prompter(image, with_mask=self.mask_filter)
        size = (image.shape[-2], image.shape[-1])
        return select_points(output, size, mask_filter=self.mask_filter, radius=self.radius_px)

    @torch.no_grad()
    def classify(self, image: Tensor, points: Tensor) -> DetectedPoints:
        """Give each point the class, and the size if predicted, of the nearest anchor point.

        Args:
            image: one normalised image ``(1, 3, H, W)``.
            points: ``(n, 2)`` as (x, y) in pixels.
        """
        output = self.prompter(image, with_mask=False)
        own, anchors, classes = _numbers(points).reshape(-1, 2), *_anchors(output)
        nearest = _nearest(own, anchors)
        sizes = None if output.sizes is None else output.sizes[0].float().cpu().numpy()[nearest]
        return DetectedPoints(own, np.ones(len(own)), classes[nearest], sizes)


class TilePointFinder:
    """Find one point per nucleus in the encoded tiles of an image (PromptNucSeg, supplement: shared encoder).

    Args:
        network: network with a shared encoder.
        mask_filter: drop points where the auxiliary mask has no nucleus.
        radius_px: largest distance between points of the same nucleus.
        tile_px: side length of a tile, for :meth:`classify`.
        overlap_px: overlap of adjacent tiles in pixels, for :meth:`classify`.

    Raises:
        ConfigurationError: ``mask_filter`` is set for a prompter without auxiliary mask.
    """

    def __init__(
        self,
        network: PromptNucSeg,
        *,
        mask_filter: bool = False,
        radius_px: float = 12.0,
        tile_px: int = 256,
        overlap_px: int = 64,
    ) -> None:
        _check_mask_filter(network.prompter, mask_filter)
        self.network = network
        self.mask_filter = mask_filter
        self.radius_px = radius_px
        self.tile_px = tile_px
        self.overlap_px = overlap_px

    @torch.no_grad()
    def find_in_tiles(self, encoded: Sequence[EncodedTiles], tiling: Tiling) -> DetectedPoints:
        """Find the nuclei of an image, in descending order of score.

        Args:
            encoded: all tiles; if there are several views, only the first is used.
            tiling: positions of the tiles.
        """
        outputs = self._proposals(encoded, with_mask=self.mask_filter)
        return _points_of_tiles(outputs, tiling, mask_filter=self.mask_filter, radius=self.radius_px)

    @torch.no_grad()
    def classify(self, image: Tensor, points: Tensor) -> DetectedPoints:
        """Give each point the most likely class of the nearest anchor point.

        Args:
            image: one normalised image ``(1, 3, H, W)``.
            points: ``(n, 2)`` as (x, y) in pixels.
        """
        tiling = plan_tiles(image.shape[-2:], self.tile_px, self.overlap_px)
        encoder = TileEncoder(self.network, image, tiling)
        encoded = (encoder.encode(np.array([tile])) for tile in range(len(tiling)))
        anchors, classes = [], []
        for tile, output in self._proposals(encoded, with_mask=False):
            of_tile, classes_of_tile = _anchors(output)
            anchors.append(of_tile + tiling.origins(np.array([tile])))
            classes.append(classes_of_tile)
        own = _numbers(points).reshape(-1, 2)
        nearest = _nearest(own, np.concatenate(anchors))
        return DetectedPoints(own, np.ones(len(own)), np.concatenate(classes)[nearest])

    def _proposals(
        self, encoded: Iterable[EncodedTiles], *, with_mask: bool
    ) -> Iterator[tuple[int, PrompterOutput]]:
        """Yield every tile with the prompter's proposals."""
        for batch in encoded:
            output = self.network.propose(batch.embeddings[0], with_mask=with_mask)
            for slot, tile in enumerate(batch.tiles.tolist()):
                own = slice(slot, slot + 1)
                mask = None if output.mask_logits is None else output.mask_logits[own]
                yield tile, PrompterOutput(output.points[own], output.class_logits[own], mask)


def _points_of_tiles(
    outputs: Iterable[tuple[int, PrompterOutput]], tiling: Tiling, *, mask_filter: bool, radius: float
) -> DetectedPoints:
    """Merge the prompter's outputs for the tiles of an image, in descending order of score.

    Every pixel belongs to the tile in which it is farthest from the inner edges, and only that tile's points count
    there. If two points on both sides of a seam are close to each other, the better one is kept.
    """
    tiles: list[NDArray[np.int64]] = []
    found: list[DetectedPoints] = []
    for tile, output in outputs:
        found.append(select_points(output, tiling.covered_size, mask_filter=mask_filter, radius=radius))
        tiles.append(np.full(len(found[-1]), tile))
    tile_of = np.concatenate(tiles)
    origins = tiling.origins(tile_of)
    points: NDArray[np.float64] = np.concatenate([_numbers(one.points) for one in found]) + origins
    scores, class_ids = (np.concatenate([getattr(one, n) for one in found]) for n in ("scores", "class_ids"))
    own = np.flatnonzero(tiles_of(points, tiling) == tile_of)
    best = own[suppress_near_points(points[own], scores[own], radius)]
    sizes = [one.sizes for one in found if one.sizes is not None]
    kept_sizes = np.concatenate(sizes)[best] if sizes else None
    return DetectedPoints(points[best], scores[best], class_ids[best], kept_sizes)


def point_finder(
    network: PromptNucSeg,
    *,
    mask_filter: bool,
    radius_px: float,
    tile_px: int,
    overlap_px: int,
    in_tiles: bool = False,
) -> PointFinder | TilePointFinder:
    """Return the point finder of a network: on whole images, or on tiles if the encoder is shared.

    Args:
        network: network whose two parts are trained.
        mask_filter: drop points where the auxiliary mask has no nucleus.
        radius_px: largest distance between points of the same nucleus.
        tile_px: side length of a tile.
        overlap_px: overlap of adjacent tiles in pixels.
        in_tiles: run the prompter on tiles in any case, see :class:`PointFinder`.

    Raises:
        ConfigurationError: ``mask_filter`` is set for a prompter without auxiliary mask.
    """
    tiles = {"tile_px": tile_px, "overlap_px": overlap_px}
    if network.shares_encoder:
        return TilePointFinder(network, mask_filter=mask_filter, radius_px=radius_px, **tiles)
    return PointFinder(
        network.prompter, mask_filter=mask_filter, radius_px=radius_px, in_tiles=in_tiles, **tiles
    )


def _check_request(output: PrompterOutput, mask_filter: bool, radius: float) -> None:
    if len(output.points) != 1:
        raise ConfigurationError(
            f"output: found {len(output.points)} images, expected one. Select points image by image."
        )
    if not radius >= 0:
        raise ConfigurationError(f"radius {radius}: expected a distance of 0 px or more.")
    if mask_filter and output.mask_logits is None:
        raise ConfigurationError(
            "mask_filter: the output holds no mask. Switch options.aux_mask on in training and with_mask in "
            "inference, or the filter off."
        )


def _check_mask_filter(prompter: Prompter, mask_filter: bool) -> None:
    if mask_filter and not prompter.options.aux_mask:
        raise ConfigurationError(
            "mask_filter: the prompter has no auxiliary mask. Train it with aux_mask, or switch the filter off."
        )


def _anchors(output: PrompterOutput) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the points ``(A, 2)`` of one image's anchors and the likeliest class of nucleus ``(A,)`` of each."""
    return _numbers(output.points[0]), output.class_logits[0, :, :-1].argmax(dim=-1).cpu().numpy()


def _nearest(points: NDArray[np.float64], anchors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each point ``(n, 2)`` the index of the nearest finite anchor ``(A, 2)``; 0 if none is finite."""
    finite = np.flatnonzero(np.isfinite(anchors).all(axis=1))
    if not len(finite):
        return np.zeros(len(points), dtype=np.int64)
    return finite[KDTree(anchors[finite]).query(points)[1]]
