"""Slides for tests: files of several kinds, and a segmenter that knows the truth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from skimage.measure import regionprops

from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances
from nucsam_monai.wsi import Method

INK = np.array([150, 60, 140], dtype=np.uint8)


def random_nuclei(side: int, count: int, seed: int, longest: int = 24) -> np.ndarray:
    """Return a label map of disjoint rectangles and discs of all sizes, some of them touching."""
    generator = np.random.default_rng(seed)
    truth = np.zeros((side, side), dtype=np.int32)
    placed = 0
    while placed < count:
        height, width = generator.integers(3, longest, 2)
        y, x = generator.integers(0, side - height), generator.integers(0, side - width)
        window = truth[y : y + height, x : x + width]
        if window.any():
            continue
        placed += 1
        window[:] = placed
        if generator.random() < 0.5:  # ragged, so that centroids are no round numbers
            window[0, : generator.integers(1, width)] = 0
    return truth


def picture_of(truth: np.ndarray) -> np.ndarray:
    """Return an image from which the oracle reads the truth: the id of each pixel as its colour, on white."""
    coded = np.stack([truth & 255, truth >> 8 & 255, truth >> 16 & 255], axis=-1)
    return np.where((truth > 0)[..., None], coded, 255).astype(np.uint8)


class Oracle:
    """Read the nuclei from the colours of :func:`picture_of`."""

    def infer(self, pixels: np.ndarray) -> Any:
        red, green, blue = (pixels[..., n].astype(np.int32) for n in range(3))
        labels = red | green << 8 | blue << 16
        labels[labels == 0xFFFFFF] = 0
        return labels

    def nuclei(self, maps: Any) -> NucleiPrediction:
        present = np.bincount(maps.ravel()) > 0
        present[0] = False
        return prediction_from_instances((np.cumsum(present) * present).astype(np.int32)[maps])


class TiledOracle(Oracle):
    """Sees nothing on the lines of the lattice, so that what it finds depends on where its tiles begin."""

    def __init__(self, stride_px: int = 48) -> None:
        self.stride_px = stride_px

    def infer(self, pixels: np.ndarray) -> Any:
        return without_lines(super().infer(pixels), self.stride_px)


def without_lines(truth: np.ndarray, stride_px: int = 48) -> np.ndarray:
    """Return a label map as :class:`TiledOracle` sees it."""
    seen = truth.copy()
    seen[::stride_px] = 0
    seen[:, ::stride_px] = 0
    return seen


def oracle(build: Callable[[Any], Any] | None = None, tile_px: int = 64, overlap_px: int = 16) -> Method:
    return Method({"bundle": "oracle"}, tile_px, overlap_px, False, build or (lambda statistics: Oracle()))


def write_tiff(
    path: Path, image: np.ndarray, mpp: float | None = 0.25, levels: int = 2, **options: Any
) -> Path:
    """Write a tiled pyramid."""
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, bigtiff=False) as file:
        for level in range(levels):
            step = 4**level
            scaled = {
                k: (v[0] / step, v[1] / step) if k == "resolution" else v for k, v in resolution.items()
            }
            kind = {"subfiletype": 1} if level else {}
            file.write(
                image[::step, ::step],
                tile=(256, 256),
                photometric="rgb",
                compression="zlib",
                metadata=None,
                **kind,
                **scaled,
                **options,
            )
    return path


def tissue_picture(side: int, seed: int = 0) -> np.ndarray:
    """Return glass with a disc of tissue on it."""
    generator = np.random.default_rng(seed)
    image = np.clip(generator.normal(243, 1.5, (side, side, 3)), 0, 255).astype(np.uint8)
    y, x = np.mgrid[:side, :side]
    inside = (y - side / 2) ** 2 + (x - side / 2) ** 2 < (side / 3) ** 2
    image[inside] = INK
    return image


def areas_and_places(truth: np.ndarray) -> set[tuple[int, int, int]]:
    """Return (area, twice the box's middle) of each nucleus, which tells disjoint nuclei apart."""
    return {
        (int(one.area), int(one.bbox[1] + one.bbox[3]), int(one.bbox[0] + one.bbox[2]))
        for one in regionprops(truth)
    }
