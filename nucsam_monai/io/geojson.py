"""Nuclei as GeoJSON that QuPath (0.4 and later) opens."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from nucsam_monai.io.contours import nuclei_polygons
from nucsam_monai.io.palette import colours_of
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_path
from nucsam_monai.utils.prediction import NucleiPrediction

ObjectType = Literal["detection", "annotation"]

_ID_NAMESPACE = uuid.UUID("6f0d2f6e-5f0c-5e0a-9c57-3d1f0b8b6a51")


def write_geojson(
    path: Path | str, prediction: NucleiPrediction, *, name: str, object_type: ObjectType = "detection"
) -> None:
    """Write the nuclei as a GeoJSON ``FeatureCollection``, one feature per line, streamed.

    Args:
        path: the file, ``.geojson``; it appears complete or not at all.
        prediction: the nuclei.
        name: what the nuclei belong to, usually the image's stem; the ids of the features follow from it.
        object_type: QuPath's kind of object. Detections stay fast for a million nuclei; annotations can be
            edited.

    Raises:
        ConfigurationError: an unknown ``object_type``.
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

    Coordinates are pixel corners: the image covers 0..W and 0..H, and the area of a geometry is the
    nucleus's number of pixels (see :func:`nucsam_monai.io.contours.mask_polygons`). A nucleus of one
    4-connected part is a Polygon, with its holes; of several parts, a MultiPolygon.

    Args:
        prediction: the nuclei.
        name: seed of the features' ids: equal name and nucleus id give the same UUID (version 5).
        object_type: QuPath's kind of object.

    Yields:
        Feature with ``id``, ``geometry`` and ``properties``: ``objectType``, ``classification`` and the
        ``measurements`` ``id``, ``area_px`` and ``score``.
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
