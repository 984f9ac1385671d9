import numpy as np
import pytest

from nucsam_monai.data.converters.aperio import parse_regions
from nucsam_monai.utils.errors import DatasetError
from tests.data.originals import aperio_xml, square


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
