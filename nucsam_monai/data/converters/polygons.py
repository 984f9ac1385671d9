"""Read annotated outlines (Aperio XML and GeoJSON of unknown origin) and paint them into an instance map."""

import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nucsam_monai.utils.errors import DatasetError

Overlap = Literal["first", "last"]


class _Builder(ET.TreeBuilder):
    """A tree without document types, whose entities blow small files up to gigabytes or name other files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DatasetError(f"has a document type ('{name}'), which no annotation needs; refused")


def parse_xml(content: bytes, where: str) -> ET.Element:
    """Return the root of an XML document; document types, and with them entities, are refused.

    Args:
        content: the document.
        where: file name for error messages.

    Raises:
        DatasetError: it is not XML, or it has a document type.
    """
    try:
        root = ET.parse(io.BytesIO(content), ET.XMLParser(target=_Builder())).getroot()  # noqa: S314
    except DatasetError as error:
        raise DatasetError(f"{where} {error}.") from error
    except (ET.ParseError, LookupError, ValueError) as error:
        raise DatasetError(f"{where}: not a readable XML file ({error}).") from error
    return root


@dataclass(frozen=True)
class AperioRegions:
    """The outlines of one image.

    Attributes:
        polygons: ``(V, 2)`` float64 vertices ``(x, y)`` in pixels, in document order, at least three each.
        region_count: regions in the file, with those of fewer than three vertices.
        mpp: micrometres per pixel, where the file states it.
    """

    polygons: list[np.ndarray]
    region_count: int
    mpp: float | None


def parse_regions(content: bytes, where: str) -> AperioRegions:
    """Read ``Annotations/Annotation/Regions/Region/Vertices/Vertex`` with attributes ``X`` and ``Y``.

    Args:
        content: the XML file.
        where: name of the file for messages.

    Raises:
        DatasetError: not such a file, or a vertex is not a pair of finite numbers.
    """
    root = parse_xml(content, where)
    if root.tag != "Annotations":
        raise DatasetError(
            f"{where}: not an Aperio annotation (root is <{root.tag}>, expected <Annotations>)."
        )
    regions = root.findall("./Annotation/Regions/Region")
    polygons = [_vertices(region, where) for region in regions]
    return AperioRegions(
        polygons=[vertices for vertices in polygons if len(vertices) >= 3],
        region_count=len(regions),
        mpp=_mpp(root.get("MicronsPerPixel")),
    )


def _vertices(region: ET.Element, where: str) -> np.ndarray:
    pairs = [(vertex.get("X"), vertex.get("Y")) for vertex in region.findall("./Vertices/Vertex")]
    try:
        vertices = np.array(pairs, dtype=np.float64).reshape(-1, 2)  # a missing coordinate becomes NaN
    except ValueError:
        vertices = np.array([[np.nan, np.nan]])
    if not np.isfinite(vertices).all():
        raise DatasetError(f"{where}: region {region.get('Id')} has a vertex without finite X and Y.")
    return vertices


def _mpp(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def polygon_mask(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """Rasterise one polygon by the even-odd rule: a pixel belongs to it if its centre is inside.

    The image's top left corner is ``(0, 0)`` and the centre of its first pixel ``(0.5, 0.5)``, as slide
    viewers store outlines. A centre exactly on an outline counts on the left and top side only, so polygons
    that share an edge share no pixel. The mean area equals the polygon's; ``cv2.fillPoly`` and
    ``skimage.draw.polygon`` also paint the pixels on the outline, which enlarges nuclei that were traced on
    integer positions by about a tenth.

    Args:
        x: ``(V,)`` columns of the vertices, in pixels.
        y: ``(V,)`` rows of the vertices, in pixels.
        shape: ``(H, W)`` of the image; parts outside are cut off.

    Returns:
        ``(h, w)`` bool over the polygon's box inside the image, and the box's first row and column.

    Example:
        >>> mask, row, column = polygon_mask(np.array([1, 4, 4, 1]), np.array([2, 2, 4, 4]), (9, 9))
        >>> mask.shape, bool(mask.all()), row, column
        ((2, 3), True, 2, 1)
    """
    x, y = x - 0.5, y - 0.5  # from here on pixel centres lie at integers
    top, bottom = _first_and_end(y, shape[0])
    left, right = _first_and_end(x, shape[1])
    rows = np.arange(top, bottom)
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    # An edge crosses the rows from its upper end to before its lower end; horizontal edges cross none.
    crosses = (y[:, None] <= rows) != (y_next[:, None] <= rows)
    edge, row = np.nonzero(crosses)
    # Divided last: a crossing that lies exactly on a pixel centre is then computed exactly.
    crossing = x[edge] + (rows[row] - y[edge]) * (x_next[edge] - x[edge]) / (y_next[edge] - y[edge])
    # Every crossing turns inside to outside, or back, for the pixels from it to the right.
    first_right = np.clip(np.ceil(crossing), left, right).astype(np.int64) - left
    turns = np.zeros((len(rows), right - left + 1), dtype=np.int64)
    np.add.at(turns, (row, first_right), 1)
    return np.cumsum(turns, axis=1)[:, :-1] % 2 == 1, top, left


def paint_polygons(
    polygons: Sequence[np.ndarray], shape: tuple[int, int], overlap: Overlap = "first"
) -> np.ndarray:
    """Paint polygons with the ids 1..n in their order.

    Args:
        polygons: ``(V, 2)`` vertices ``(x, y)`` in pixels each.
        shape: ``(H, W)`` of the map.
        overlap: whether the first or the last polygon keeps a pixel that several claim.

    Returns:
        ``(H, W)`` int32; a polygon that is hidden, outside or smaller than a pixel leaves a gap in the ids.
    """
    instances = np.zeros(shape, dtype=np.int32)
    numbered = list(enumerate(polygons, start=1))
    # Painting backwards lets the first one win without asking what is there already.
    for instance_id, vertices in reversed(numbered) if overlap == "first" else numbered:
        mask, top, left = polygon_mask(vertices[:, 0], vertices[:, 1], shape)
        instances[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = instance_id
    return instances


def geojson_outlines(path: Path) -> list[np.ndarray]:
    """Read the polygons of a GeoJSON file, as QuPath exports objects of one image.

    Cells and detections are the nuclei, a cell by the outline of its nucleus; annotations are if there is nothing else.

    Args:
        path: a FeatureCollection, or a list of features; coordinates are pixels.

    Returns:
        ``(V, 2)`` vertices ``(x, y)`` of each in the order of the file, for :func:`paint_polygons`.

    Raises:
        DatasetError: it is not such a file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        features = document["features"] if isinstance(document, dict) else document
        kinds = [feature.get("properties", {}).get("objectType") for feature in features]
        found = [one for one, kind in zip(features, kinds, strict=True) if kind in ("cell", "detection")]
        return [
            _outline(feature.get("nucleusGeometry") or feature["geometry"]) for feature in found or features
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path}: expected a GeoJSON FeatureCollection of polygons ({type(error).__name__}: {error}). Export the "
            "objects of this image from QuPath."
        ) from error


def _outline(geometry: dict[str, Any]) -> np.ndarray:
    """Return the rings of a polygon, or of several, as one closed line ``(V, 2)``.

    Between rings it goes to and fro along the same way, which the even-odd rule does not see.
    """
    if geometry["type"] not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"found a {geometry['type']}")
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    rings = [np.array(ring, dtype=np.float64)[:, :2] for polygon in polygons for ring in polygon]
    start = rings[0][:1]
    parts = [part for ring in rings for part in (ring, ring[:1], start)]
    vertices = np.concatenate(parts)
    if not np.isfinite(vertices).all():
        raise ValueError("found a vertex that is not finite")
    return vertices


def _first_and_end(positions: np.ndarray, size: int) -> tuple[int, int]:
    """Return the half-open range of pixels inside the image that a polygon can touch along one axis."""
    first = int(np.clip(np.ceil(positions.min()), 0, size))
    return first, int(np.clip(np.floor(positions.max()) + 1, first, size))
