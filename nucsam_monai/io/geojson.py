"""Write nuclei as GeoJSON for QuPath (0.4 and later), with outlines along the pixel edges."""

import itertools
import json
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from nucsam_monai.io.overlay import colours_of
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_path
from nucsam_monai.utils.label_outlines import LabelOutlines, label_outlines
from nucsam_monai.utils.prediction import NUCLEUS_DTYPE, NucleiPrediction

ObjectType = Literal["detection", "annotation"]

_ID_NAMESPACE = uuid.UUID("6f0d2f6e-5f0c-5e0a-9c57-3d1f0b8b6a51")

Ring = list[list[int]]
"""Closed ring of ``[x, y]`` pixel corners; the last point repeats the first."""

Polygon = list[Ring]
"""Exterior ring followed by the rings of the holes."""

_NUCLEI_AT_ONCE = 20_000
_PIXELS_AT_ONCE = 1 << 19


def write_geojson(
    path: Path | str, prediction: NucleiPrediction, *, name: str, object_type: ObjectType = "detection"
) -> None:
    """Write the nuclei as a GeoJSON ``FeatureCollection`` with one feature per line.

    Args:
        path: ``.geojson`` file; written completely or not at all.
        prediction: nuclei of one image.
        name: usually the stem of the image file; the UUIDs of the features are derived from it.
        object_type: QuPath object type. ``"detection"`` stays fast with a million nuclei, ``"annotation"`` can be
            edited.

    Raises:
        ConfigurationError: ``object_type`` is unknown.
    """
    if object_type not in ("detection", "annotation"):
        raise ConfigurationError(f"object_type: expected 'detection' or 'annotation', found {object_type!r}.")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for feature in nuclei_features(prediction, name=name, object_type=object_type):
            file.write(separator + json.dumps(feature, separators=(",", ":"), allow_nan=False))
            separator = ",\n"
        file.write("\n]}\n")


def nuclei_features(
    prediction: NucleiPrediction, *, name: str, object_type: ObjectType = "detection"
) -> Iterator[dict[str, object]]:
    """Yield one GeoJSON feature per nucleus.

    Coordinates are pixel corners, so the image covers 0..W and 0..H, and the area of a geometry equals the number of
    pixels of the nucleus (see :func:`nucsam_monai.io.geojson.polygons_of_masks`). A nucleus with one 4-connected part
    is a Polygon with its holes, a nucleus with several parts a MultiPolygon.

    Args:
        prediction: nuclei of one image.
        name: the UUID (version 5) of a feature is derived from this name and the id of the nucleus.
        object_type: QuPath object type.

    Yields:
        Feature with ``id``, ``geometry`` and ``properties``. The properties are ``objectType``, ``classification``
        and ``measurements`` (``id``, ``area_px`` and ``score``).
    """
    colours = colours_of(np.arange(len(prediction.class_names))).tolist()
    classes = [
        {"name": class_name, "color": colour}
        for class_name, colour in zip(prediction.class_names, colours, strict=True)
    ]
    polygons_by_nucleus = nuclei_polygons(prediction.instances, prediction.table)
    measured = prediction.table[["class_id", "area_px", "score"]].tolist()
    for (nucleus_id, polygons), (class_id, area_px, score) in zip(polygons_by_nucleus, measured, strict=True):
        is_single = len(polygons) == 1
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(_ID_NAMESPACE, f"{name}/{nucleus_id}")),
            "geometry": {
                "type": "Polygon" if is_single else "MultiPolygon",
                "coordinates": polygons[0] if is_single else polygons,
            },
            "properties": {
                "objectType": object_type,
                "classification": classes[class_id],
                "measurements": {"id": nucleus_id, "area_px": area_px, "score": round(score, 6)},
            },
        }


def nuclei_polygons(instances: np.ndarray, table: np.ndarray) -> Iterator[tuple[int, list[Polygon]]]:
    """Yield the id and the polygons of each nucleus.

    Args:
        instances: ``(H, W)`` integers, 0 = background.
        table: rows with the fields ``id`` and ``box_*_px`` of :data:`~nucsam_monai.utils.prediction.NUCLEUS_DTYPE`.

    Yields:
        The id of a nucleus and its polygons from :func:`polygons_of_masks`, in coordinates of the whole image.
    """
    for first in range(0, len(table), _NUCLEI_AT_ONCE):
        rows = table[first : first + _NUCLEI_AT_ONCE]
        polygons = _polygons(label_outlines(instances, rows), len(rows))
        yield from zip(rows["id"].tolist(), polygons, strict=True)


def _polygons(outlines: LabelOutlines, nuclei: int) -> list[list[Polygon]]:
    """Return the polygons of each nucleus as lists."""
    polygons: list[list[Polygon]] = [[] for _ in range(nuclei)]
    for nucleus in outlines.nucleus_of_polygon.tolist():
        polygons[nucleus].append([])
    of_polygon = list(itertools.chain.from_iterable(polygons))
    ends = itertools.pairwise(outlines.ring_ends.tolist())
    for polygon, (begin, end) in zip(outlines.polygon_of_ring.tolist(), ends, strict=True):
        of_polygon[polygon].append(outlines.corners[begin:end].tolist())
    return polygons


def polygons_of_masks(masks: Iterable[np.ndarray]) -> Iterator[list[Polygon]]:
    """Trace masks along their pixel edges, so that the area of the polygons equals the number of pixels.

    The pixel in column x and row y covers the square from (x, y) to (x + 1, y + 1), as in QuPath. Parts that
    touch only at a corner become separate polygons, so every ring is simple and the geometry is valid (OGC Simple
    Features). Exterior rings have positive signed area, holes negative (RFC 7946, section 3.1.6). Many masks are
    traced at once, in a fraction of the time that single ones take.

    Args:
        masks: ``(h, w)`` each, uint8, 0 or 1, or bool.

    Yields:
        For each mask one polygon per 4-connected part, largest first; none for an empty mask.

    Example:
        >>> next(polygons_of_masks([np.ones((1, 2), dtype=np.uint8)]))
        [[[[0, 0], [2, 0], [2, 1], [0, 1], [0, 0]]]]
    """
    for batch in _strips(masks):
        bottoms = np.cumsum([mask.shape[0] for mask in batch])
        rows = np.zeros(len(batch), dtype=NUCLEUS_DTYPE)
        rows["id"] = np.arange(1, len(batch) + 1)
        rows["box_x_max_px"] = [mask.shape[1] for mask in batch]
        rows["box_y_min_px"][1:], rows["box_y_max_px"] = bottoms[:-1], bottoms
        strip = np.zeros((bottoms[-1], rows["box_x_max_px"].max()), dtype=np.int32)
        for nucleus_id, (mask, bottom) in enumerate(zip(batch, bottoms.tolist(), strict=True), start=1):
            strip[bottom - mask.shape[0] : bottom, : mask.shape[1]][mask > 0] = nucleus_id
        found = label_outlines(strip, rows)
        top_of_ring = rows["box_y_min_px"][found.nucleus_of_polygon[found.polygon_of_ring]]
        found.corners[:, 1] -= np.repeat(top_of_ring, np.diff(found.ring_ends))
        yield from _polygons(found, len(batch))


def _strips(masks: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Group masks so that those of a group fit below each other into a map of a moderate size."""
    strip: list[np.ndarray] = []
    height = width = 0
    for mask in masks:
        height, width = height + mask.shape[0], max(width, mask.shape[1])
        if strip and height * width > _PIXELS_AT_ONCE:
            yield strip
            strip, (height, width) = [], mask.shape
        strip.append(mask)
    if strip:
        yield strip
