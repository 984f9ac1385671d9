"""XML of unknown origin."""

import pytest

from nucsam_monai.utils.errors import DatasetError
from nucsam_monai.utils.untrusted_xml import parse_xml


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
