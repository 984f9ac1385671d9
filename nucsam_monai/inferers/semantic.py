"""Predict the probability of nucleus in images of any size."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer, SlidingWindowInferer
from skimage.filters import threshold_otsu
from torch import Tensor
from torch.nn import functional as F

from nucsam_monai.inferers.precision import autocast
from nucsam_monai.inferers.tiling import EIGHT_VIEWS, IDENTITY
from nucsam_monai.utils.errors import ConfigurationError, ImageReadError
from nucsam_monai.utils.names import Fit, check_fit

logger = logging.getLogger(__name__)

Predictor = Callable[..., Tensor]
Points = tuple[Tensor, Tensor]


class TileInferer(Inferer):
    """Cover an image with overlapping square tiles and blend their probabilities.

    Args:
        tile_px: side length of a tile, the size the network was trained at.
        overlap: fraction of a tile that it has in common with its neighbour.
        tiles_per_batch: tiles that go through the network together.
    """

    def __init__(self, tile_px: int, overlap: float = 0.25, tiles_per_batch: int = 4) -> None:
        super().__init__()
        self.tile_px = tile_px
        self.tiles = SlidingWindowInferer(
            (tile_px, tile_px), tiles_per_batch, overlap, mode="gaussian", with_coord=True
        )

    def __call__(
        self, inputs: Tensor, network: Predictor, *args: Any, points: Points | None = None, **kwargs: Any
    ) -> Tensor:
        """Return ``(B, n, H, W)`` from ``(B, 3, H, W)`` of any size; points go to the tiles they lie in."""
        height, width = inputs.shape[-2:]
        # A zero after normalisation is SAM's mean colour, as in SAM's own padding.
        padding = (0, max(0, self.tile_px - width), 0, max(0, self.tile_px - height))
        padded = F.pad(inputs, padding) if any(padding) else inputs  # which would be copied

        def predict_tiles(tiles: Tensor, slices: Sequence[Sequence[slice]]) -> Tensor:
            own = {} if points is None else {"points": _points_of_tiles(points, slices)}
            return network(tiles, *args, **own, **kwargs)

        return self.tiles(padded, predict_tiles)[..., :height, :width]


class ResizeInferer(Inferer):
    """Stretch the whole image to the working size and the probability back (UN-SAM, section IV).

    Args:
        image_size: side length of the input image in pixels.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size

    def __call__(
        self, inputs: Tensor, network: Predictor, *args: Any, points: Points | None = None, **kwargs: Any
    ) -> Tensor:
        """Return ``(B, n, H, W)`` from ``(B, 3, H, W)`` of any size."""
        height, width = inputs.shape[-2:]
        if points is not None:
            kwargs["points"] = resized_points(points, self.image_size / width, self.image_size / height)
        size = (self.image_size, self.image_size)
        stretched = F.interpolate(inputs, size=size, mode="bilinear", align_corners=False)
        probability = network(stretched, *args, **kwargs)
        return F.interpolate(probability, size=(height, width), mode="bilinear", align_corners=False)


def spatial_inferer(fit: Fit, image_size: int, overlap: float = 0.25) -> TileInferer | ResizeInferer:
    """Return the inferer that fits images to a network's working size.

    Args:
        fit: ``tile`` for :class:`TileInferer`, ``resize`` for :class:`ResizeInferer`; as in training, see
            :func:`~nucsam_monai.transforms.working_size`.
        image_size: side length of the input image in pixels.
        overlap: overlap of the tiles as a fraction of their side length.

    Raises:
        ConfigurationError: ``fit`` is unknown.
    """
    check_fit(fit)
    return TileInferer(image_size, overlap) if fit == "tile" else ResizeInferer(image_size)


class SemanticInferer(Inferer):
    """Predict the probability of nucleus with the branch of the image's domain.

    Args:
        inferer: :class:`TileInferer` or :class:`ResizeInferer`.
        domains: the domains the network was trained on; None for networks without domains.
        unseen_domain: the branch for any other domain: one of ``domains``, or ``"mean"`` for the
            mean probability of several. By default ``"monuseg"`` if it was trained (H&E at 40x, the nearest
            domain of most histology), else ``"mean"``.
        mean_domains: the branches that ``"mean"`` averages; all by default.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        test_time_augmentation: average over the eight ways in which a tile can be turned and mirrored.

    Raises:
        ConfigurationError: ``domains`` is empty, or ``unseen_domain`` or ``mean_domains`` name no trained
            domain.
    """

    def __init__(
        self,
        inferer: Inferer,
        domains: Sequence[str] | None = None,
        unseen_domain: str | None = None,
        mean_domains: Sequence[str] | None = None,
        precision: str = "auto",
        test_time_augmentation: bool = False,
    ) -> None:
        super().__init__()
        self.inferer = inferer
        self.views = EIGHT_VIEWS if test_time_augmentation else IDENTITY
        self.domains = None if domains is None else tuple(domains)
        if self.domains == ():
            raise ConfigurationError("domains: expected at least one, or None for a network without domains.")
        known = self.domains or ()
        self.mean_domains = tuple(mean_domains or known)
        self.unseen_domain = unseen_domain or ("monuseg" if "monuseg" in known else "mean")
        self.precision = precision
        self._announced: set[str] = set()
        for option, names in (("mean_domains", self.mean_domains), ("unseen_domain", (self.unseen_domain,))):
            for name in names:
                if name not in known and (option, name) != ("unseen_domain", "mean"):
                    trained_on = ", ".join(known) or "no domains"
                    raise ConfigurationError(f"{option} '{name}': the network was trained on {trained_on}.")

    def __call__(
        self, inputs: Tensor, network: Predictor, *args: Any, domain: str | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the float32 probability ``(B, n_q, H, W)`` of normalised images ``(B, 3, H, W)``.

        Args:
            inputs: images of one domain.
            network: gives logits.
            args: handed to the network.
            domain: the images' domain, ``"mean"``, or None where it is unknown.
            kwargs: handed to the network.
        """
        with autocast(self.precision, inputs.device):
            return self.inferer(inputs, self._probability_of(network, args, domain), **kwargs)

    def scale_of(self, inputs: Tensor, network: Predictor, *args: Any, domain: str | None = None) -> float:
        """Return the factor by which an image is resized before it is cut into tiles; arguments as of a call."""
        scale_of = getattr(self.inferer, "scale_of", None)
        if scale_of is None:
            return 1.0
        with autocast(self.precision, inputs.device):
            return float(scale_of(inputs, self._probability_of(network, args, domain)))

    def _probability_of(self, network: Predictor, args: tuple[Any, ...], domain: str | None) -> Predictor:
        """Return what gives the probabilities of tiles."""
        branches = self.branches(domain)

        def probability(tiles: Tensor, points: Points | None = None) -> Tensor:
            answers = []
            for view in self.views:
                seen, own = view.of(tiles), {}
                if points is not None:
                    own["points"] = (view.of_points(points[0], tiles.shape[-1]), points[1])
                for branch in branches:
                    logits = network(seen, *args, **own, **branch)
                    answers.append(view.undo(torch.sigmoid(logits.float())))
            # Of branches with different numbers of classes all have the first.
            common = min(answer.shape[1] for answer in answers)
            return torch.stack([answer[:, :common] for answer in answers]).mean(dim=0)

        return probability

    def branches(self, domain: str | None) -> list[dict[str, str]]:
        """Return the network arguments whose outputs are averaged for an image of ``domain``."""
        if self.domains is None:
            return [{}]
        if len(self.domains) == 1:
            return [{"domain": self.domains[0]}]
        if domain not in (*self.domains, "mean"):
            if domain is not None and domain not in self._announced:
                self._announced.add(domain)
                logger.warning(
                    "domain '%s' was not trained; '%s' is used instead.", domain, self.unseen_domain
                )
            domain = self.unseen_domain
        return [{"domain": name} for name in (self.mean_domains if domain == "mean" else (str(domain),))]


def resized_points(points: Points, x_factor: float, y_factor: float) -> Points:
    """Return the points of an image ``(B, K, 2)`` after it was resized by the factors, and their labels."""
    factors = points[0].new_tensor([x_factor, y_factor])
    return (points[0] + 0.5) * factors - 0.5, points[1]


def _points_of_tiles(points: Points, slices: Sequence[Sequence[slice]]) -> Points:
    """Shift the points into each tile's coordinates; those outside become padding (label -1).

    Args:
        points: coordinates ``(B, K, 2)`` in image pixels and labels ``(B, K)``.
        slices: per tile the slices of image, channel, rows and columns that it covers.
    """
    coordinates, labels = [], []
    for image, _, rows, columns in slices:
        shifted = points[0][image.start] - points[0].new_tensor([columns.start, rows.start])
        x, y = shifted.unbind(-1)
        inside = (x >= 0) & (x < columns.stop - columns.start) & (y >= 0) & (y < rows.stop - rows.start)
        coordinates.append(shifted)
        labels.append(torch.where(inside, points[1][image.start], -1))
    return torch.stack(coordinates), torch.stack(labels)


_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def otsu_foreground(image: np.ndarray) -> np.ndarray:
    """Return the smaller side of Otsu's threshold on the luminance: the baseline of every trained method.

    The smaller side works for dark nuclei on a bright background and for bright nuclei on a dark one, without
    looking at an annotation. An image of one grey value has no foreground.

    Source: Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9 (1979).

    Args:
        image: ``(H, W, 3)`` uint8 RGB.

    Returns:
        ``(H, W)`` bool.

    Raises:
        ImageReadError: the image is not ``(H, W, 3)`` uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageReadError(
            f"image: expected (H, W, 3) RGB of uint8, found shape {image.shape} of {image.dtype}."
        )
    luminance = np.rint(image @ _LUMINANCE).astype(np.uint8)
    if luminance.size == 0 or luminance.min() == luminance.max():
        return np.zeros(luminance.shape, dtype=bool)
    bright = luminance > threshold_otsu(luminance)
    return bright if bright.mean() <= 0.5 else ~bright
