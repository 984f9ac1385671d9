"""Annotated outlines of the viewers, read into polygons with names: ASAP's XML, DSA's JSON and GeoJSON."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.apps.monailabel.refusals import json_object
from nucsam_monai.data.converters.polygons import parse_xml
from nucsam_monai.utils.errors import DatasetError

POLYGON_SUFFIXES = (".xml", ".json", ".geojson")

_FEWEST_CORNERS = 3
_FARTHEST_PX = 1 << 40


@dataclass(frozen=True)
class NamedPolygon:
    """One outline.

    Attributes:
        name: class that the annotator gave it, perhaps empty.
        corners: ``(V, 2)`` float64 (x, y) in pixels, the image's top left corner at (0, 0).
        holes: outlines of the holes, likewise.
    """

    name: str
    corners: NDArray[np.float64]
    holes: tuple[NDArray[np.float64], ...] = ()


def read_polygons(path: Path) -> list[NamedPolygon]:
    """Read a file of outlines; the kind of JSON follows from its content.

    Raises:
        DatasetError: it is none of these formats, or has corners that are no finite numbers.
    """
    return parse_polygons(path.read_bytes(), path.name)


def parse_polygons(content: bytes, where: str) -> list[NamedPolygon]:
    """Read the content of a file of outlines, see :func:`read_polygons`.

    Args:
        content: of the file.
        where: its name, for messages.

    Raises:
        DatasetError: as of :func:`read_polygons`.
    """
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        return list(_asap(content, where))
    value = json_object(content, where)
    if value.get("type") in ("FeatureCollection", "Feature"):
        return list(_geojson(value, where))
    annotation = value.get("annotation", value)
    if isinstance(annotation, dict) and isinstance(annotation.get("elements"), list):
        return list(_dsa(annotation["elements"], where))
    raise DatasetError(f"{where}: expected GeoJSON, or JSON of the Digital Slide Archive with 'elements'.")


def _asap(content: bytes, where: str) -> Iterator[NamedPolygon]:
    root = parse_xml(content, where)
    if root.tag != "ASAP_Annotations":
        raise DatasetError(f"{where}: root is <{root.tag}>, expected <ASAP_Annotations>.")
    for annotation in root.iter("Annotation"):
        corners = [(one.get("X"), one.get("Y")) for one in annotation.iter("Coordinate")]
        name = annotation.get("PartOfGroup")
        if name in (None, "", "None"):
            name = annotation.get("Name")
        polygon = _polygon(name, [corners], where)
        if polygon is not None:
            yield polygon


def _dsa(elements: list[Any], where: str) -> Iterator[NamedPolygon]:
    for element in elements:
        if not isinstance(element, dict) or element.get("type") != "polyline":
            continue
        label = element.get("label")
        name = element.get("group") or (label.get("value") if isinstance(label, dict) else "")
        holes = element.get("holes")
        rings = [element.get("points"), *(holes if isinstance(holes, list) else [])]
        polygon = _polygon(name, rings, where)
        if polygon is not None:
            yield polygon


def _geojson(value: dict[str, Any], where: str) -> Iterator[NamedPolygon]:
    features = value.get("features") if value["type"] == "FeatureCollection" else [value]
    for feature in features if isinstance(features, list) else []:
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        if not isinstance(geometry, dict) or geometry.get("type") not in ("Polygon", "MultiPolygon"):
            continue
        properties = feature.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        classification = properties.get("classification")
        name = classification.get("name") if isinstance(classification, dict) else properties.get("name")
        parts = geometry.get("coordinates")
        for rings in [parts] if geometry["type"] == "Polygon" else parts if isinstance(parts, list) else []:
            polygon = _polygon(name, rings, where)
            if polygon is not None:
                yield polygon


def _polygon(name: Any, rings: Any, where: str) -> NamedPolygon | None:
    if not isinstance(rings, list) or not rings:
        raise DatasetError(f"{where}: an outline without corners.")
    corners = [_ring(ring, where) for ring in rings]
    if len(corners[0]) < _FEWEST_CORNERS:
        return None
    holes = tuple(ring for ring in corners[1:] if len(ring) >= _FEWEST_CORNERS)
    return NamedPolygon(name if isinstance(name, str) else "", corners[0], holes)


def _ring(ring: Any, where: str) -> NDArray[np.float64]:
    try:
        points = np.array([[float(point[0]), float(point[1])] for point in ring], dtype=np.float64)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise DatasetError(f"{where}: a corner is no pair of numbers ({error}).") from error
    if points.size and not (np.isfinite(points).all() and np.abs(points).max() < _FARTHEST_PX):
        raise DatasetError(f"{where}: a corner is not a finite number of pixels.")
    return points.reshape(-1, 2)
