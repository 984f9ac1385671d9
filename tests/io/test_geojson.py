import json
import uuid
from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.io import nuclei_features, write_geojson
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import prediction_from_instances
from tests.oracles.polygon_raster import signed_ring_area


@pytest.fixture
def prediction():
    instances = np.zeros((30, 40), dtype=np.int32)
    instances[2:9, 3:12] = 4
    instances[4:6, 5:7] = 0  # a hole
    instances[10:15, 20:30] = 9
    instances[20:22, 20:30] = 9  # a second part
    return prediction_from_instances(
        instances, scores=np.array([0.9, 0.25]), class_ids=np.array([1, 0]), class_names=("tumour", "stroma")
    )


def test_document_is_a_feature_collection(tmp_path: Path, prediction) -> None:
    path = tmp_path / "a.geojson"
    write_geojson(path, prediction, name="a")
    document = json.loads(path.read_text())
    assert document["type"] == "FeatureCollection"
    first, second = document["features"]
    assert first["type"] == "Feature"
    assert first["geometry"]["type"] == "Polygon"
    assert len(first["geometry"]["coordinates"]) == 2
    assert second["geometry"]["type"] == "MultiPolygon"
    assert first["properties"]["objectType"] == "detection"
    assert first["properties"]["classification"]["name"] == "stroma"
    assert second["properties"]["classification"]["name"] == "tumour"
    colour = first["properties"]["classification"]["color"]
    assert len(colour) == 3
    assert all(isinstance(value, int) and 0 <= value <= 255 for value in colour)
    assert first["properties"]["measurements"] == {"id": 4, "area_px": 59, "score": 0.9}


def test_area_of_a_geometry_is_the_number_of_pixels(prediction) -> None:
    for feature in nuclei_features(prediction, name="a"):
        geometry = feature["geometry"]
        polygons = (
            geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        )
        area = sum(signed_ring_area(ring) for polygon in polygons for ring in polygon)
        assert area == feature["properties"]["measurements"]["area_px"]


def test_ids_are_uuids_that_follow_from_name_and_nucleus(prediction) -> None:
    first, again, other = (
        [feature["id"] for feature in nuclei_features(prediction, name=name)] for name in ("a", "a", "b")
    )
    assert first == again
    assert len({*first, *other}) == 4
    assert {uuid.UUID(value).version for value in first} == {5}


def test_object_type_is_annotation_on_request_and_nothing_else(tmp_path: Path, prediction) -> None:
    feature = next(nuclei_features(prediction, name="a", object_type="annotation"))
    assert feature["properties"]["objectType"] == "annotation"
    with pytest.raises(ConfigurationError, match="cell"):
        write_geojson(tmp_path / "a.geojson", prediction, name="a", object_type="cell")
    assert list(tmp_path.iterdir()) == []


def test_no_nuclei_is_an_empty_collection(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", prediction_from_instances(np.zeros((4, 5), dtype=int)), name="a")
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
