import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.draw import polygon

from nucsam_monai.data.converters.polygons import paint_polygons, parse_regions, parse_xml, polygon_mask
from nucsam_monai.utils.errors import DatasetError
from tests.data.originals import aperio_xml, square
from tests.oracles.rasterise import polygon_mask as slow_polygon_mask

SHAPE = (11, 9)
HALVES = st.integers(-6, 26).map(lambda value: value / 2)


def full_mask(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    mask, top, left = polygon_mask(x, y, SHAPE)
    full = np.zeros(SHAPE, dtype=bool)
    full[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return full


@given(st.lists(st.tuples(HALVES, HALVES), min_size=3, max_size=9))
def test_polygons_through_pixel_centres_match_the_oracle(vertices: list[tuple[float, float]]) -> None:
    x, y = np.array(vertices, dtype=float).T
    np.testing.assert_array_equal(full_mask(x, y), slow_polygon_mask(x, y, SHAPE))


@given(st.integers(0, 2**32 - 1), st.integers(3, 12))
def test_general_polygons_match_scikit_image(seed: int, vertex_count: int) -> None:
    x, y = np.random.default_rng(seed).uniform(-4, 14, (2, vertex_count))
    expected = np.zeros(SHAPE, dtype=bool)
    expected[polygon(y - 0.5, x - 0.5, SHAPE)] = True
    np.testing.assert_array_equal(full_mask(x, y), expected)


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5, 0.75])
def test_a_square_has_its_area_wherever_it_lies(shift: float) -> None:
    x = np.array([2.0, 6, 6, 2]) + shift
    y = np.array([3.0, 3, 8, 8]) + shift
    assert full_mask(x, y).sum() == 20


def test_integer_corners_are_pixel_corners() -> None:
    mask = full_mask(np.array([2, 6, 6, 2]), np.array([3, 3, 8, 8]))
    assert mask[3:8, 2:6].all()


def test_neighbours_share_an_edge_but_no_pixel() -> None:
    y = np.array([1.0, 1.0, 9.0, 9.0])
    left, right = full_mask(np.array([1, 4.5, 3, 1]), y), full_mask(np.array([4.5, 8, 8, 3]), y)
    assert not (left & right).any()
    assert (left | right)[1:9, 1:8].all()


@pytest.mark.parametrize("away", [-50, 50])
def test_polygon_outside_has_no_pixel(away: float) -> None:
    square = np.array([1.0, 4, 4, 1]), np.array([1.0, 1, 4, 4])
    assert not full_mask(square[0] + away, square[1]).any()
    assert not full_mask(square[0], square[1] + away).any()


def test_overlap_goes_to_the_first_or_the_last() -> None:
    boxes = [np.array([(x, 2), (x + 4, 2), (x + 4, 5), (x, 5)], dtype=float) for x in (1, 3)]
    assert paint_polygons(boxes, SHAPE)[3].tolist() == [0, 1, 1, 1, 1, 2, 2, 0, 0]
    assert paint_polygons(boxes, SHAPE, "last")[3].tolist() == [0, 1, 1, 2, 2, 2, 2, 0, 0]
    assert not paint_polygons([], SHAPE).any()


def test_regions_come_in_document_order_with_their_fractions() -> None:
    regions = parse_regions(aperio_xml([square(1.5, 2.25, 3), [(1, 1), (2, 2)], square(0, 0, 1)]), "a.xml")
    assert regions.region_count == 3
    assert regions.mpp == 0.252
    assert len(regions.polygons) == 2
    np.testing.assert_array_equal(regions.polygons[0], square(1.5, 2.25, 3))


def test_no_regions_and_no_mpp_are_normal() -> None:
    regions = parse_regions(b'<Annotations MicronsPerPixel="?"><Annotation/></Annotations>', "a.xml")
    assert (regions.polygons, regions.region_count, regions.mpp) == ([], 0, None)


BOMB = """<?xml version="1.0" encoding="{encoding}"?>
<!DOCTYPE Annotations [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><Annotations>&b;</Annotations>"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_type_is_refused(encoding: str) -> None:
    with pytest.raises(DatasetError, match=r"a\.xml has a document type"):
        parse_regions(BOMB.format(encoding=encoding).encode(encoding), "a.xml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable XML"),
        (b"<Annotations>", "not a readable XML"),
        (b'<?xml version="1.0" encoding="none"?><Annotations/>', "not a readable XML"),
        (b"<html/>", "root is <html>"),
        (aperio_xml([[("x", 1), (2, 2), (3, 3)]]), "without finite"),
        (aperio_xml([[("nan", 1), (2, 2), (3, 3)]]), "without finite"),
        (aperio_xml([square(1, 1, 1)]).replace(b'X="1"', b"", 1), "without finite"),
    ],
)
def test_foreign_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=rf"^a\.xml: .*{message}"):
        parse_regions(content, "a.xml")


def test_plain_xml_is_read() -> None:
    root = parse_xml(b'<a><b X="1"/></a>', "a.xml")
    assert [(one.tag, one.get("X")) for one in root] == [("b", "1")]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<a>",
        b"\xff\xfe<",
        b'<?xml version="1.0" encoding="no-such"?><a/>',
        b'<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;&b;">]><a>&c;</a>',
        b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
        b'<!DOCTYPE a SYSTEM "http://example.org/a.dtd"><a/>',
    ],
)
def test_damaged_or_typed_documents_are_refused(content: bytes) -> None:
    with pytest.raises(DatasetError, match=r"a\.xml"):
        parse_xml(content, "a.xml")
