"""What QuPath expects of the GeoJSON that it opens as objects."""

from typing import Any

import jsonschema

_POSITION = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_RING = {"type": "array", "items": _POSITION, "minItems": 4}
_RINGS = {"type": "array", "items": _RING, "minItems": 1}


def _geometry(kind: str, coordinates: dict[str, Any]) -> dict[str, Any]:
    return {
        "required": ["type", "coordinates"],
        "properties": {"type": {"const": kind}, "coordinates": coordinates},
    }


_UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
_COLOUR = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 255},
    "minItems": 3,
    "maxItems": 3,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "id", "geometry", "properties"],
                "properties": {
                    "type": {"const": "Feature"},
                    "id": {"type": "string", "pattern": _UUID},
                    "geometry": {
                        "oneOf": [
                            _geometry("Polygon", _RINGS),
                            _geometry("MultiPolygon", {"type": "array", "items": _RINGS, "minItems": 1}),
                        ]
                    },
                    "properties": {
                        "type": "object",
                        "required": ["objectType", "classification", "measurements"],
                        "additionalProperties": False,
                        "properties": {
                            "objectType": {"enum": ["detection", "annotation"]},
                            "classification": {
                                "type": "object",
                                "required": ["name", "color"],
                                "additionalProperties": False,
                                "properties": {"name": {"type": "string", "minLength": 1}, "color": _COLOUR},
                            },
                            "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
                        },
                    },
                },
            },
        },
    },
}


def check_qupath_objects(document: Any) -> None:
    """Fail where QuPath would refuse a document or ignore a part of it; rings are closed and ids differ."""
    jsonschema.validate(document, SCHEMA)
    ids = [feature["id"] for feature in document["features"]]
    assert len(set(ids)) == len(ids)
    for feature in document["features"]:
        geometry = feature["geometry"]
        polygons = (
            geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        )
        assert all(ring[0] == ring[-1] for polygon in polygons for ring in polygon)
