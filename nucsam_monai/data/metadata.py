"""What a dataset folder says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nucsam_monai.data.protocols import Protocol, protocols_from_json
from nucsam_monai.utils.errors import DatasetError

_REQUIRED_TEXTS = ("name", "domain", "modality", "licence", "citation")


@dataclass(frozen=True)
class DatasetMetadata:
    """What is known about a dataset as a whole.

    Attributes:
        name: name of the dataset, for example ``"monuseg"``.
        domain: the domain that its items carry; domain-conditioned methods tell datasets apart by it.
        modality: stain or microscopy, in words.
        magnification: objective magnification (``40.0`` for 40x); None where mixed or unknown.
        mpp: micrometres per pixel; None where mixed or unknown.
        class_names: names that class ids index from 0; ``("nucleus",)`` where there are no classes.
        licence: licence of images and annotation.
        citation: what to cite.
        source: ``{file name: sha256}`` of what it was made from.
        conversion: options and counts of the conversion, for the reader of ``dataset.json``.
        protocols: the named splits of the dataset.
        protocol: the one that ``dataset.json`` is split by; None where there are no named ones.
    """

    name: str
    domain: str
    modality: str
    magnification: float | None
    mpp: float | None
    licence: str
    citation: str
    class_names: tuple[str, ...] = ("nucleus",)
    source: Mapping[str, str] = field(default_factory=dict)
    conversion: Mapping[str, Any] = field(default_factory=dict)
    protocols: Mapping[str, Protocol] = field(default_factory=dict)
    protocol: str | None = None


def metadata_from_json(content: Mapping[str, Any], file: Path) -> DatasetMetadata:
    """Read the metadata out of the content of ``dataset.json``.

    Raises:
        DatasetError: a required entry is missing, or an entry is of the wrong type.
    """
    texts: dict[str, Any] = {key: content.get(key) for key in _REQUIRED_TEXTS}
    wrong = [key for key, value in texts.items() if not isinstance(value, str)]
    numbers: dict[str, Any] = {key: content.get(key) for key in ("magnification", "mpp")}
    wrong += [key for key, value in numbers.items() if not _is_number_or_none(value)]
    class_names = content.get("class_names")
    if not _is_list_of_texts(class_names) or not class_names:
        wrong.append("class_names")
    wrong += [key for key in ("source", "conversion") if not isinstance(content.get(key, {}), dict)]
    protocols = protocols_from_json(content.get("protocols", {}), str(file))
    if content.get("protocol") not in (None, *protocols):
        wrong.append("protocol")
    if wrong:
        raise DatasetError(
            f"{file}: missing or of the wrong type: {', '.join(wrong)}. Prepare the dataset again."
        )
    return DatasetMetadata(
        **texts,
        **numbers,
        class_names=tuple(class_names or ()),
        source=content.get("source", {}),
        conversion=content.get("conversion", {}),
        protocols=protocols,
        protocol=content.get("protocol"),
    )


def _is_number_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
