import itertools
import json
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nucsam_monai.io import geojson, nuclei_features, write_geojson
from nucsam_monai.io.geojson import Polygon, nuclei_polygons, polygons_of_masks
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import prediction_from_instances
from tests.oracles.polygon_raster import rasterise, signed_ring_area
from tests.qupath import check_qupath_objects


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
    check_qupath_objects(document)
    first, second = document["features"]
    assert first["geometry"]["type"] == "Polygon"
    assert len(first["geometry"]["coordinates"]) == 2
    assert second["geometry"]["type"] == "MultiPolygon"
    assert first["properties"]["objectType"] == "detection"
    assert first["properties"]["classification"]["name"] == "stroma"
    assert second["properties"]["classification"]["name"] == "tumour"
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


def mask_polygons(mask: np.ndarray) -> list[Polygon]:
    (polygons,) = polygons_of_masks([mask])
    return polygons


masks = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 1))


@settings(max_examples=150, deadline=None)
@given(masks)
def test_polygons_cover_exactly_the_mask(mask: np.ndarray) -> None:
    polygons = mask_polygons(mask)
    np.testing.assert_array_equal(rasterise(polygons, *mask.shape), mask)


@settings(max_examples=150, deadline=None)
@given(masks)
def test_rings_are_closed_simple_axis_parallel_and_oriented(mask: np.ndarray) -> None:
    area = 0.0
    for exterior, *holes in mask_polygons(mask):
        for ring in (exterior, *holes):
            assert ring[0] == ring[-1]
            assert len({tuple(point) for point in ring}) == len(ring) - 1 >= 4
            for (x0, y0), (x1, y1) in itertools.pairwise(ring):
                assert (x0 == x1) != (y0 == y1)
        assert signed_ring_area(exterior) > 0
        assert all(signed_ring_area(hole) < 0 for hole in holes)
        area += sum(signed_ring_area(ring) for ring in (exterior, *holes))
    assert area == mask.sum()


def test_one_pixel_is_its_unit_square() -> None:
    (polygon,) = mask_polygons(np.ones((1, 1), dtype=np.uint8))
    assert sorted(map(tuple, polygon[0][:-1])) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_straight_edges_have_no_points_between_corners() -> None:
    (polygon,) = mask_polygons(np.ones((40, 60), dtype=np.uint8))
    assert len(polygon[0]) == 5


def test_parts_that_touch_at_a_corner_are_polygons_of_their_own_and_the_largest_is_first() -> None:
    mask = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 1]], dtype=np.uint8)
    polygons = mask_polygons(mask)
    assert [signed_ring_area(exterior) for (exterior,) in polygons] == [4, 1]


def test_hole_is_a_ring_of_its_own() -> None:
    mask = np.ones((5, 5), dtype=np.uint8)
    mask[2, 2] = 0
    ((exterior, hole),) = mask_polygons(mask)
    assert (signed_ring_area(exterior), signed_ring_area(hole)) == (25, -1)


def test_empty_mask_has_no_polygons() -> None:
    assert mask_polygons(np.zeros((4, 4), dtype=np.uint8)) == []


def test_nuclei_lie_where_they_are_in_the_image() -> None:
    instances = np.zeros((12, 20), dtype=np.int32)
    instances[1:4, 2:7] = 70_000
    instances[4:9, 5:9] = 3
    instances[2, 15] = 70_000
    prediction = prediction_from_instances(instances)
    found = dict(nuclei_polygons(instances, prediction.table))
    assert set(found) == {3, 70_000}
    for nucleus_id, polygons in found.items():
        np.testing.assert_array_equal(rasterise(polygons, 12, 20), instances == nucleus_id)


def test_batches_of_nuclei_give_what_each_nucleus_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    instances = np.random.default_rng(4).integers(0, 40, (30, 44)).repeat(2, axis=0).repeat(3, axis=1)
    monkeypatch.setattr(geojson, "_NUCLEI_AT_ONCE", 3)
    table = prediction_from_instances(instances).table[::-1]
    found = dict(nuclei_polygons(instances, table))
    assert list(found) == list(range(39, 0, -1))
    for nucleus_id, polygons in found.items():
        assert polygons == mask_polygons(instances == nucleus_id)


def test_many_masks_give_what_each_mask_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geojson, "_PIXELS_AT_ONCE", 200)
    generator = np.random.default_rng(5)
    shapes = generator.integers(0, 12, (40, 2)).tolist()
    masks = [generator.integers(0, 2, shape).astype(bool) for shape in shapes]
    found = list(polygons_of_masks(iter(masks)))
    assert found == [mask_polygons(mask) for mask in masks]
    for (height, width), mask, polygons in zip(shapes, masks, found, strict=True):
        np.testing.assert_array_equal(rasterise(polygons, height, width), mask)
    assert list(polygons_of_masks([])) == []
