import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucsam_monai.io import Point, points_by_id, read_points, require_inside
from nucsam_monai.utils.errors import DatasetError

ITEMS = [
    {"image": "a/tile.png", "id": "a_tile"},
    {"image": "b/tile.png", "id": "b_tile"},
    {"image": "b/other.tif", "id": "other"},
]


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "points.json"
        path.write_text(text)
        return path

    return write


COORDINATES = st.one_of(st.integers(0, 9999), st.floats(0, 9999))
POINTS = st.lists(st.builds(Point, COORDINATES, COORDINATES, st.sampled_from([0, 1])), max_size=4)


@given(st.dictionaries(st.text(min_size=1, max_size=8), POINTS, max_size=3))
def test_what_is_written_is_read(tmp_path_factory, points):
    path = tmp_path_factory.mktemp("points") / "points.json"
    path.write_text(json.dumps(points), encoding="utf-8")
    assert read_points(path) == points


def test_a_point_without_label_is_on_a_nucleus(write):
    assert read_points(write('{"tile.png": [[3, 4.5], [1, 2, 0]]}')) == {"tile.png": [(3, 4.5, 1), (1, 2, 0)]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected an object like"),
        ("3", "expected an object like"),
        ('{"a": [], "a": [[1, 2]]}', "'a' is named 2 times"),
        ('{"a": {"x": 1}}', "expected a list of"),
        ('{"a": 5}', "expected a list of"),
        ('{"a": [[1]]}', r"'a', point 0: expected \[x, y\] or \[x, y, label\], found \[1\]"),
        ('{"a": [[1, 2, 1, 0]]}', "expected"),
        ('{"a": [[1, 2], {"x": 1}]}', "point 1: expected"),
        ('{"a": [["1", 2]]}', "expected two finite numbers, found '1' and 2"),
        ('{"a": [[true, 2]]}', "expected two finite numbers"),
        ('{"a": [[NaN, 2]]}', "expected two finite numbers"),
        ('{"a": [[1, Infinity]]}', "expected two finite numbers"),
        ('{"a": [[1, 1e999]]}', "expected two finite numbers"),
        ('{"a": [[1, %s]]}' % ("9" * 400), "expected two finite numbers"),
        ('{"a": [[1, 2, 2]]}', r"label 2, expected 1 \(nucleus\) or 0"),
        ('{"a": [[1, 2, -1]]}', "label -1"),
        ('{"a": [[1, 2, true]]}', "label True"),
        ('{"a": [[1, 2, null]]}', "label None"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_anything_else_is_refused(write, text, message):
    with pytest.raises(DatasetError, match=message) as error:
        read_points(write(text))
    assert "points.json" in str(error.value)


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read"):
        read_points(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DatasetError, match="not valid JSON"):
        read_points(tmp_path / "binary.json")


def test_an_image_is_named_by_file_name_or_id():
    assert points_by_id({"other.tif": [Point(1, 2)], "b_tile": []}, ITEMS) == {
        "other": [Point(1, 2)],
        "b_tile": [],
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["third.png"], "'third.png': no such image among the 3"),
        (["tile.png"], "2 images have that name. Name one by id: a_tile, b_tile"),
        (["other", "other.tif"], "'other.tif': the image is named twice"),
    ],
)
def test_a_name_that_is_not_one_image_is_refused(names, message):
    with pytest.raises(DatasetError, match=message):
        points_by_id({name: [] for name in names}, ITEMS)


def test_points_outside_of_the_image_are_refused():
    require_inside([Point(-0.5, 0), Point(63.5, 47.5)], 48, 64, "tile")
    for x, y in ((-0.6, 0), (63.6, 0), (0, 48), (0, -1)):
        with pytest.raises(DatasetError, match=r"'tile': point 1 at x .* 64 x 48 px"):
            require_inside([Point(1, 1), Point(x, y)], 48, 64, "tile")
