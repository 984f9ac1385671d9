"""Write and read outlines of nuclei as viewers do: ASAP's XML, JSON of the Digital Slide Archive, and GeoJSON.

QuPath's extension reads ASAP's XML; GeoJSON is only read.
"""

import html
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.apps.monailabel.refusals import json_object
from nucsam_monai.data.converters.polygons import parse_xml
from nucsam_monai.io.geojson import polygons_of_masks
from nucsam_monai.io.overlay import colours_of
from nucsam_monai.utils.errors import DatasetError
from nucsam_monai.utils.files import atomic_path
from nucsam_monai.utils.nucleus import Nucleus

_FEWEST_CORNERS = 3
POLYGON_SUFFIXES = (".xml", ".json", ".geojson")
_FARTHEST_PX = 1 << 40


@dataclass(frozen=True)
class AnnotationFacts:
    """Describe the annotations of a region and where it lies.

    Attributes:
        model: name of the model.
        class_names: names that class ids index.
        location: first pixel (x, y) of the region at full resolution.
        size: width and height of the region at full resolution.
        scale: pixels of full resolution per pixel of the region.
        smallest_px: nuclei of a smaller area in pixels of the region are left out.
    """

    model: str
    class_names: Sequence[str]
    location: tuple[int, int]
    size: tuple[int, int]
    scale: float = 1.0
    smallest_px: int = 0

    @property
    def colours(self) -> list[list[int]]:
        """Return the RGB colour of every class."""
        return colours_of(np.arange(len(self.class_names))).tolist()


@dataclass(frozen=True)
class Outline:
    """Hold the outline of a nucleus: corners of pixels at full resolution, and its class."""

    contour: list[list[int]]
    class_id: int


def outlines(nuclei: Iterable[Nucleus], facts: AnnotationFacts) -> Iterator[Outline]:
    """Yield the outline of the largest part of each nucleus that is not too small.

    Its corners are those of pixels in coordinates of the whole image, and the ring is not closed.
    """
    shown, traced = itertools.tee(one for one in nuclei if one.area_px >= max(facts.smallest_px, 1))
    for nucleus, parts in zip(shown, polygons_of_masks(one.mask for one in traced), strict=True):
        corners = np.add(parts[0][0][:-1], (nucleus.x, nucleus.y))
        corners = np.rint(corners * facts.scale).astype(np.int64) + facts.location
        yield Outline(corners.tolist(), nucleus.class_id)


def write_annotations(path: Path | str, kind: str, nuclei: Iterable[Nucleus], facts: AnnotationFacts) -> int:
    """Write one polygon per nucleus, in the order given.

    Args:
        path: path of the file; it is written completely or not at all.
        kind: ``asap`` for XML that QuPath's extension reads, ``dsa`` for JSON of the Digital Slide Archive.
        nuclei: nuclei of the region.
        facts: about the region.

    Returns:
        The number of polygons.
    """
    start, separator, end, entry = _DIALECTS[kind](facts)
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(start)
        for count, outline in enumerate(outlines(nuclei, facts), start=1):
            file.write((separator if count > 1 else "") + entry(outline))
        file.write(end)
    return count


def annotation_record(nuclei: Iterable[Nucleus], facts: AnnotationFacts) -> dict[str, Any]:
    """Return the annotations as MONAI Label's own record: contours by class."""
    contours: dict[str, list[list[list[int]]]] = {name: [] for name in facts.class_names}
    for outline in outlines(nuclei, facts):
        contours[facts.class_names[outline.class_id]].append(outline.contour)
    return {
        "location": list(facts.location),
        "size": list(facts.size),
        "elements": [{"label": name, "contours": found} for name, found in contours.items()],
        "labels": dict(zip(facts.class_names, facts.colours, strict=True)),
    }


_Dialect = tuple[str, str, str, Callable[[Outline], str]]


def _asap_dialect(facts: AnnotationFacts) -> _Dialect:
    names = [_attribute(name) for name in facts.class_names]
    colours = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in facts.colours]
    model, (x, y), (width, height) = _attribute(facts.model), facts.location, facts.size
    start = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ASAP_Annotations>\n'
        f'<Annotations Name="{model}" Model="{model}" X="{x}" Y="{y}" W="{width}" H="{height}">\n'
    )
    groups = "".join(
        f'<Group Name="{name}" PartOfGroup="None" Color="{colour}"><Attributes /></Group>\n'
        for name, colour in zip(names, colours, strict=True)
    )
    end = f"</Annotations>\n<AnnotationGroups>\n{groups}</AnnotationGroups>\n</ASAP_Annotations>\n"

    def entry(outline: Outline) -> str:
        name, colour = names[outline.class_id], colours[outline.class_id]
        corners = "".join(
            f'<Coordinate Order="{order}" X="{column}" Y="{row}" />'
            for order, (column, row) in enumerate(outline.contour)
        )
        return (
            f'<Annotation Name="{name}" Type="Polygon" PartOfGroup="{name}" Color="{colour}">'
            f"<Coordinates>{corners}</Coordinates></Annotation>\n"
        )

    return start, "", end, entry


def _dsa_dialect(facts: AnnotationFacts) -> _Dialect:
    def entry(outline: Outline) -> str:
        name = facts.class_names[outline.class_id]
        red, green, blue = facts.colours[outline.class_id]
        polyline = {
            "group": name,
            "type": "polyline",
            "lineColor": f"rgb({red}, {green}, {blue})",
            "lineWidth": 2.0,
            "closed": True,
            "points": [[column, row, 0] for column, row in outline.contour],
            "label": {"value": name},
        }
        return json.dumps(polyline, separators=(",", ":"))

    described = json.dumps({"model": facts.model, "location": facts.location, "size": facts.size})
    start = f'{{"name": {json.dumps(f"nuclei of {facts.model}")}, "elements": [\n'
    return start, ",\n", f'\n], "description": {json.dumps(described)}}}\n', entry


_DIALECTS: Mapping[str, Callable[[AnnotationFacts], _Dialect]] = {"asap": _asap_dialect, "dsa": _dsa_dialect}
ANNOTATION_FORMATS = (*_DIALECTS, "json")


def _attribute(text: str) -> str:
    return html.escape(text, quote=True)


@dataclass(frozen=True)
class NamedPolygon:
    """Hold an annotated outline.

    Attributes:
        name: class that the annotator gave it, perhaps empty.
        corners: ``(V, 2)`` float64 (x, y) in pixels, the image's top left corner at (0, 0).
        holes: outlines of the holes, in the same form.
    """

    name: str
    corners: NDArray[np.float64]
    holes: tuple[NDArray[np.float64], ...] = ()


def read_polygons(path: Path) -> list[NamedPolygon]:
    """Read a file of outlines; the kind of JSON follows from its content.

    Raises:
        DatasetError: it is none of these formats, or has corners that are not finite numbers.
    """
    return parse_polygons(path.read_bytes(), path.name)


def parse_polygons(content: bytes, where: str) -> list[NamedPolygon]:
    """Read the content of a file of outlines, see :func:`read_polygons`.

    Args:
        content: bytes of the file.
        where: file name for error messages.

    Raises:
        DatasetError: as of :func:`read_polygons`.
    """
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        return list(_polygons_of_asap(content, where))
    value = json_object(content, where)
    if value.get("type") in ("FeatureCollection", "Feature"):
        return list(_polygons_of_geojson(value, where))
    annotation = value.get("annotation", value)
    if isinstance(annotation, dict) and isinstance(annotation.get("elements"), list):
        return list(_polygons_of_dsa(annotation["elements"], where))
    raise DatasetError(f"{where}: expected GeoJSON, or JSON of the Digital Slide Archive with 'elements'.")


def _polygons_of_asap(content: bytes, where: str) -> Iterator[NamedPolygon]:
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


def _polygons_of_dsa(elements: list[Any], where: str) -> Iterator[NamedPolygon]:
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


def _polygons_of_geojson(value: dict[str, Any], where: str) -> Iterator[NamedPolygon]:
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
        raise DatasetError(f"{where}: a corner is not a pair of numbers ({error}).") from error
    if points.size and not (np.isfinite(points).all() and np.abs(points).max() < _FARTHEST_PX):
        raise DatasetError(f"{where}: a corner is not a finite number of pixels.")
    return points.reshape(-1, 2)
