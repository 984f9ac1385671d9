"""Reading XML of unknown origin."""

import io
import xml.etree.ElementTree as ET

from nucsam_monai.utils.errors import DatasetError


class _Builder(ET.TreeBuilder):
    """A tree without document types, whose entities blow small files up to gigabytes or name other files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DatasetError(f"has a document type ('{name}'), which no annotation needs; refused")


def parse_xml(content: bytes, where: str) -> ET.Element:
    """Return the root of an XML document; document types, and with them entities, are refused.

    Args:
        content: the document.
        where: its name, for messages.

    Raises:
        DatasetError: it is no XML, or it has a document type.
    """
    try:
        root = ET.parse(io.BytesIO(content), ET.XMLParser(target=_Builder())).getroot()  # noqa: S314
    except DatasetError as error:
        raise DatasetError(f"{where} {error}.") from error
    except (ET.ParseError, LookupError, ValueError) as error:
        raise DatasetError(f"{where}: not a readable XML file ({error}).") from error
    return root
