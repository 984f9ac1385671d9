"""Where a slide holds tissue, and the region that a user names."""

import json
from pathlib import Path

import cv2
import numpy as np
import shapely

from nucsam_monai.io import read_image
from nucsam_monai.utils.errors import ConfigurationError

SATURATION_BOUNDS = (10, 60)
"""Otsu's threshold is kept in between: on empty glass it would part noise, on full tissue the tissue."""

_DARK = 220
_CLOSED_UM = 40.0
_SMALLEST_MM2 = 0.01


def tissue_mask(thumbnail: np.ndarray, mpp: float, margin_um: float = 30.0) -> np.ndarray:
    """Find the tissue of a stained slide on its thumbnail.

    Tissue is coloured or dark: the saturation exceeds Otsu's threshold, which is bounded, or the grey value is low.
    Gaps are closed, specks dropped, and the rest is enlarged by a margin.

    Args:
        thumbnail: ``(h, w, 3)`` uint8 RGB.
        mpp: micrometres per pixel of it.
        margin_um: margin in micrometres by which the tissue is enlarged.

    Returns:
        ``(h, w)`` bool.
    """
    from skimage.filters import threshold_otsu  # takes a third of a second, which --help need not spend

    saturation = thumbnail.max(axis=2) - thumbnail.min(axis=2)
    otsu = threshold_otsu(saturation) if saturation.min() < saturation.max() else 0
    threshold = np.clip(otsu, *SATURATION_BOUNDS)
    mask = ((saturation > threshold) | (thumbnail.mean(axis=2) < _DARK)).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _disc(_CLOSED_UM / mpp / 2))
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    large = statistics[:, cv2.CC_STAT_AREA] * (mpp / 1000) ** 2 >= _SMALLEST_MM2
    large[0] = False
    return cv2.dilate(large[parts].astype(np.uint8), _disc(margin_um / mpp)) > 0


def given_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read a mask image of the whole slide, bright where tissue is; return ``(h, w)`` bool of ``shape``."""
    image = read_image(path)[..., 0]
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_NEAREST) > 127


def read_region(path: Path) -> shapely.Geometry:
    """Return the union of all polygons of a GeoJSON file, in pixels of level 0.

    Raises:
        ConfigurationError: there is no polygon in it.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, list):  # QuPath also writes bare lists of features
            document = {"type": "FeatureCollection", "features": document}
        region = shapely.union_all(shapely.get_parts(shapely.from_geojson(json.dumps(document))))
    except (OSError, ValueError, shapely.errors.ShapelyError) as error:
        raise ConfigurationError(f"{path}: cannot be read as GeoJSON ({error}).") from error
    if region.area == 0:
        raise ConfigurationError(f"{path}: no polygon in it. Draw the region as a closed outline.")
    return region


def draw_region(region: shapely.Geometry, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Return a region as a mask of ``shape``, whose pixels span ``scale`` pixels of level 0; touched ones are in."""
    mask = np.zeros(shape, dtype=np.uint8)
    for part in shapely.get_parts(region):
        if part.geom_type == "Polygon":
            ring = np.round(shapely.get_coordinates(part.exterior) / scale - 0.5).astype(np.int32)
            cv2.fillPoly(mask, [ring], 1)
    return cv2.dilate(mask, np.ones((3, 3), dtype=np.uint8)) > 0


def _disc(radius_px: float) -> np.ndarray:
    side = 2 * max(0, round(radius_px)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
