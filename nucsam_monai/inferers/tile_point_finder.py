"""A nuclei prompter that reads the embeddings of the segmenter's tiles."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from nucsam_monai.inferers.anchor_selection import select_points, suppress_near_points
from nucsam_monai.inferers.detected_points import DetectedPoints
from nucsam_monai.inferers.point_finder import PointFinder
from nucsam_monai.inferers.prompt_tiles import best_visits, visit_tiles
from nucsam_monai.inferers.test_time_views import IDENTITY
from nucsam_monai.inferers.tile_decoding import TileEncoder
from nucsam_monai.inferers.tiling import EncodedTiles, Tiling, plan_tiles
from nucsam_monai.networks.prompter import PrompterOutput
from nucsam_monai.networks.promptnucseg import PromptNucSeg
from nucsam_monai.utils.errors import ConfigurationError


class TilePointFinder:
    """Find one point per nucleus in the encoded tiles of an image (PromptNucSeg, supplement: shared encoder).

    Every pixel belongs to the tile in which it is farthest from the tile's inner edges; a tile's points in the
    pixels of others are left to those. Of points near to each other on both sides of a seam the better one stays.

    Args:
        network: with a shared encoder.
        mask_filter: drop points where the auxiliary mask sees no nucleus.
        radius_px: largest distance of points that are taken for the same nucleus.
        tile_px: side of a tile, for :meth:`classify`.
        overlap_px: pixels that neighbouring tiles have in common, for :meth:`classify`.

    Raises:
        ConfigurationError: a mask filter for a prompter without auxiliary mask.
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
        if mask_filter and not network.prompter.options.aux_mask:
            raise ConfigurationError(
                "mask_filter: the prompter has no auxiliary mask. Train it with aux_mask, or switch the filter off."
            )
        self.network = network
        self.mask_filter = mask_filter
        self.radius_px = radius_px
        self.tile_px = tile_px
        self.overlap_px = overlap_px

    @torch.no_grad()
    def find_in_tiles(self, encoded: Sequence[EncodedTiles], tiling: Tiling) -> DetectedPoints:
        """Return the nuclei of an image, the most certain first.

        Args:
            encoded: all tiles; of several views the first is looked at.
            tiling: the tiles of the image.
        """
        points, scores, class_ids = [np.zeros((0, 2))], [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
        for tile, output in self._proposals(encoded, with_mask=self.mask_filter):
            found = select_points(
                output, tiling.covered_size, mask_filter=self.mask_filter, radius=self.radius_px
            )
            placed = np.asarray(found.points) + _origin(tile, tiling)
            own = _in_own_pixels(placed, tile, tiling)
            points.append(placed[own])
            scores.append(np.asarray(found.scores)[own])
            class_ids.append(np.asarray(found.class_ids)[own])
        joined, ranks = np.concatenate(points), np.concatenate(scores)
        best = suppress_near_points(joined, ranks, self.radius_px)
        return DetectedPoints(joined[best], ranks[best], np.concatenate(class_ids)[best])

    @torch.no_grad()
    def classify(self, image: Tensor, points: Tensor) -> DetectedPoints:
        """Return given points with the likeliest class of nucleus at the anchor point nearest to each.

        Args:
            image: one normalised image ``(1, 3, H, W)``.
            points: ``(n, 2)`` as (x, y) in pixels.
        """
        tiling = plan_tiles(image.shape[-2:], self.tile_px, self.overlap_px)
        encoder = TileEncoder(self.network, image, tiling, IDENTITY)
        anchors, class_ids = [np.zeros((0, 2))], [np.zeros(0, dtype=np.int64)]
        for number in range(len(tiling)):
            for tile, output in self._proposals([encoder.encode(np.array([number]))], with_mask=False):
                placed = output.points[0].double().cpu().numpy() + _origin(tile, tiling)
                usable = np.isfinite(placed).all(axis=1)
                anchors.append(placed[usable])
                class_ids.append(output.class_logits[0, :, :-1].argmax(dim=-1).cpu().numpy()[usable])
        own, candidates = points.detach().cpu().double().numpy().reshape(-1, 2), np.concatenate(anchors)
        nearest = KDTree(candidates).query(own)[1] if len(candidates) else np.zeros(0, dtype=np.int64)
        classes = (
            np.concatenate(class_ids)[nearest] if len(candidates) else np.zeros(len(own), dtype=np.int64)
        )
        return DetectedPoints(own, np.ones(len(own)), classes)

    def _proposals(
        self, encoded: Sequence[EncodedTiles], *, with_mask: bool
    ) -> Iterator[tuple[int, PrompterOutput]]:
        """Yield every tile with what the prompter proposes in it."""
        for batch in encoded:
            output = self.network.propose(batch.embeddings[0], with_mask=with_mask)
            for slot, tile in enumerate(batch.tiles.tolist()):
                own = slice(slot, slot + 1)
                mask = None if output.mask_logits is None else output.mask_logits[own]
                yield tile, PrompterOutput(output.points[own], output.class_logits[own], mask)


def point_finder(
    network: PromptNucSeg, *, mask_filter: bool, radius_px: float, tile_px: int, overlap_px: int
) -> PointFinder | TilePointFinder:
    """Return what finds the points of a network: in whole images, or in tiles where the encoder is shared.

    Args:
        network: both of its parts are trained.
        mask_filter: drop points where the auxiliary mask sees no nucleus.
        radius_px: largest distance of points that are taken for the same nucleus.
        tile_px: side of a tile.
        overlap_px: pixels that neighbouring tiles have in common.

    Raises:
        ConfigurationError: a mask filter for a prompter without auxiliary mask.
    """
    if not network.shares_encoder:
        return PointFinder(network.prompter, mask_filter=mask_filter, radius_px=radius_px)
    return TilePointFinder(
        network, mask_filter=mask_filter, radius_px=radius_px, tile_px=tile_px, overlap_px=overlap_px
    )


def _origin(tile: int, tiling: Tiling) -> NDArray[np.float64]:
    """Return the first pixel ``(1, 2)`` of a tile as (x, y)."""
    return tiling.origins(np.array([tile])).astype(np.float64)


def _in_own_pixels(xy: NDArray[np.float64], tile: int, tiling: Tiling) -> NDArray[np.bool_]:
    """Return which points ``(n, 2)`` lie in pixels that belong to the tile."""
    pixels = np.floor(xy + 0.5).astype(np.int64)
    visits = visit_tiles(pixels, tiling)
    best = visits.select(best_visits(visits, pixels, tiling))
    owner = np.empty(len(pixels), dtype=np.int64)
    owner[best.prompts] = best.tiles
    return owner == tile
