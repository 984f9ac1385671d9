"""Reading the outlines of an Aperio ImageScope annotation file."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass

import numpy as np

from nucsam_monai.utils.errors import DatasetError
from nucsam_monai.utils.untrusted_xml import parse_xml


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
