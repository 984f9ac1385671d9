"""Polygons out, as viewers read them, and in again, as they save them."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from nucsam_monai.apps.monailabel.annotations import (
    AnnotationFacts,
    annotation_record,
    parse_polygons,
    read_polygons,
    write_annotations,
)
from nucsam_monai.apps.monailabel.refusals import RequestRefusedError
from nucsam_monai.data.converters.polygons import paint_polygons
from nucsam_monai.utils.errors import DatasetError
from nucsam_monai.utils.nucleus import Nucleus, nuclei_of_prediction
from tests.apps.monailabel.analytic import dark_nuclei, discs

FACTS = AnnotationFacts("unsam", ('a "quoted" <name> & more', "b"), (100, 200), (60, 40))
NUCLEI = [
    Nucleus(0, 0, np.ones((2, 3), dtype=bool)),
    Nucleus(10, 20, np.ones((1, 1), dtype=bool), class_id=1),
]


def test_asap_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "out.xml"
    assert write_annotations(file, "asap", NUCLEI, FACTS) == 2
    first, second = read_polygons(file)
    assert (first.name, second.name) == FACTS.class_names
    assert sorted(first.corners.tolist()) == [[100, 200], [100, 202], [103, 200], [103, 202]]
    assert sorted(second.corners.tolist()) == [[110, 220], [110, 221], [111, 220], [111, 221]]
    colours = [one.get("Color") for one in ElementTree.parse(file).iter("Annotation")]
    assert colours == ["#00be3c", "#0096ff"]


def test_dsa_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    assert write_annotations(file, "dsa", NUCLEI, FACTS) == 2
    document = json.loads(file.read_text())
    assert [one["type"] for one in document["elements"]] == ["polyline"] * 2
    assert sorted(document["elements"][1]["points"])[0] == [110, 220, 0]
    assert [one.name for one in read_polygons(file)] == list(FACTS.class_names)


@pytest.mark.parametrize("kind", ["asap", "dsa"])
def test_no_nuclei_are_a_valid_file(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    assert write_annotations(file, kind, [], FACTS) == 0  # type: ignore[arg-type]
    assert read_polygons(file) == []


def test_small_nuclei_are_left_out_and_levels_are_scaled() -> None:
    facts = AnnotationFacts("unsam", ("a", "b"), (100, 200), (60, 40), scale=4.0, smallest_px=2)
    record = annotation_record(NUCLEI, facts)
    contours = [one["contours"] for one in record["elements"]]
    assert [len(own) for own in contours] == [1, 0]
    assert sorted(contours[0][0]) == [[100, 200], [100, 208], [112, 200], [112, 208]]


def test_painted_polygons_are_the_masks_again(tmp_path: Path) -> None:
    prediction = dark_nuclei(discs(60, 80, [(12, 12), (40, 30), (70, 55), (79, 0)], 9))
    facts = AnnotationFacts("unsam", ("nucleus",), (0, 0), (80, 60))
    write_annotations(tmp_path / "out.xml", "asap", nuclei_of_prediction(prediction), facts)
    polygons = [one.corners for one in read_polygons(tmp_path / "out.xml")]
    assert (paint_polygons(polygons, (60, 80)) == prediction.instances).all()


def test_geojson_with_holes_and_parts() -> None:
    square = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]
    hole = [[2, 2], [4, 2], [4, 4], [2, 2]]
    features = [
        {
            "geometry": {"type": "Polygon", "coordinates": [square, hole]},
            "properties": {"classification": {"name": "b"}},
        },
        {"geometry": {"type": "MultiPolygon", "coordinates": [[square], [square]]}, "properties": None},
        {"geometry": {"type": "Point", "coordinates": [1, 2]}},
    ]
    polygons = parse_polygons(json.dumps({"type": "FeatureCollection", "features": features}).encode(), "x")
    assert [(one.name, len(one.holes)) for one in polygons] == [("b", 1), ("", 0), ("", 0)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"<a>",
        b"<other/>",
        b'{"type": "other"}',
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "y">]><ASAP_Annotations>&x;</ASAP_Annotations>',
        b'<ASAP_Annotations><Annotation><Coordinate X="1" Y="x"/></Annotation></ASAP_Annotations>',
        b'<ASAP_Annotations><Annotation><Coordinate X="1"/></Annotation></ASAP_Annotations>',
        b'{"elements": [{"type": "polyline", "points": [[1, NaN, 0], [2, 3, 0], [4, 5, 0]]}]}',
        b'{"elements": [{"type": "polyline", "points": 5}]}',
        b'{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[1], [2], [3]]]}}',
        b'{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": "x"}}',
    ],
)
def test_damaged_outlines_are_refused(content: bytes) -> None:
    with pytest.raises((DatasetError, RequestRefusedError)):
        parse_polygons(content, "label.xml")
