"""The dataset folder: its metadata, and reading it as MONAI items.

::

    <name>/dataset.json         MONAI datalist with the metadata and the three splits; relative paths
    <name>/images/<id>.png      RGB uint8
    <name>/instances/<id>.png   uint16 (TIFF int32 past 65535 nuclei): 0 background, ids 1..n
    <name>/classes/<id>.json    {instance id: class id}, where the dataset has classes
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from nucsam_monai.data.splits import SPLITS
from nucsam_monai.utils.errors import ConfigurationError, DatasetError

DATASET_FILE = "dataset.json"
FILE_KEYS = ("image", "instances", "classes")
REQUIRED_ITEM_KEYS = ("image", "instances", "domain", "id")

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


@dataclass(frozen=True)
class Dataset:
    """A dataset folder that was read.

    Attributes:
        folder: absolute path of the folder.
        metadata: what is known about the dataset.
        splits: ``{"training" | "validation" | "test": items}``; each item is ``{"image", "instances",
            "classes"?, "domain", "id", "tissue"?, "group"?}`` with absolute paths as strings.
    """

    folder: Path
    metadata: DatasetMetadata
    splits: Mapping[str, list[dict[str, str]]]


def read_dataset(folder: Path | str) -> Dataset:
    """Read ``dataset.json`` of a dataset folder and make its paths absolute; no image is opened.

    Raises:
        DatasetError: there is no ``dataset.json``, or its content is not that of a dataset folder.

    Example:
        >>> dataset = read_dataset("data/monuseg")  # doctest: +SKIP
        >>> dataset.splits["test"][0]["image"]  # doctest: +SKIP
        '/home/me/data/monuseg/images/TCGA-2Z-A9J9-01A-01-TS1.png'
    """
    folder = Path(folder).absolute()
    file = folder / DATASET_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(
            f"{folder}: no {DATASET_FILE}. Make it with scripts/prepare_dataset.py."
        ) from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: not readable as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file}: expected a JSON object, found {type(content).__name__}.")
    metadata = _metadata_from_json(content, file)
    splits = {split: _items_from_json(content.get(split, []), split, folder, metadata) for split in SPLITS}
    return Dataset(folder=folder, metadata=metadata, splits=splits)


def find_datasets(dataset_dir: Path | str) -> list[Path]:
    """Return the dataset folders at ``dataset_dir``: itself, or the folders directly below it, sorted.

    Raises:
        DatasetError: there is none.
    """
    dataset_dir = Path(dataset_dir)
    if (dataset_dir / DATASET_FILE).is_file():
        return [dataset_dir]
    if dataset_dir.is_dir():
        found = sorted(
            path.parent
            for path in dataset_dir.glob(f"*/{DATASET_FILE}")
            if not path.parent.name.startswith(".")
        )
        if found:
            return found
        reason = f"neither it nor a folder in it holds a {DATASET_FILE}"
    else:
        reason = "it is not a folder"
    raise DatasetError(
        f"dataset_dir {dataset_dir}: {reason}. Pass --dataset_dir with a prepared dataset, or prepare "
        "one with scripts/prepare_dataset.py."
    )


def load_items(
    dataset_dir: Path | str,
    splits: str | Sequence[str],
    domains: str | Sequence[str] | None = None,
) -> list[dict[str, str]]:
    """Return the items of one or several splits over the datasets, in the order of the domains named.

    Args:
        dataset_dir: one dataset folder, or a folder of several.
        splits: any of ``"training"``, ``"validation"`` and ``"test"``.
        domains: the domains to take; None takes all.

    Returns:
        Items for ``monai.data.Dataset``; see :class:`Dataset`.

    Raises:
        ConfigurationError: a split or a domain is unknown.
        DatasetError: there is no dataset, or no item in these splits.
    """
    splits = [splits] if isinstance(splits, str) else list(splits)
    for split in splits:
        if split not in SPLITS:
            raise ConfigurationError(f"split '{split}': expected one of {', '.join(SPLITS)}.")
    datasets = [read_dataset(folder) for folder in find_datasets(dataset_dir)]
    known = sorted({dataset.metadata.domain for dataset in datasets})
    wanted = (
        known if domains is None else [domains] if isinstance(domains, str) else list(dict.fromkeys(domains))
    )
    for domain in wanted:
        if domain not in known:
            raise ConfigurationError(f"domain '{domain}': {dataset_dir} has {', '.join(known)}.")
    items = [
        item
        for domain in wanted
        for dataset in datasets
        if dataset.metadata.domain == domain
        for split in splits
        for item in dataset.splits[split]
    ]
    if not items:
        filled = [name for name in SPLITS if any(dataset.splits[name] for dataset in datasets)]
        raise DatasetError(
            f"{dataset_dir}: {' and '.join(splits)} of {', '.join(wanted)} hold no image; "
            f"splits with images are {', '.join(filled) or 'none'}."
        )
    return items


def training_domains(dataset_dir: Path | str) -> list[str]:
    """Return the domains that have training items, sorted: the order of a model's domain queries.

    Raises:
        DatasetError: there is no dataset.
    """
    datasets = [read_dataset(folder) for folder in find_datasets(dataset_dir)]
    return sorted({dataset.metadata.domain for dataset in datasets if dataset.splits["training"]})


def _metadata_from_json(content: Mapping[str, Any], file: Path) -> DatasetMetadata:
    texts: dict[str, Any] = {key: content.get(key) for key in _REQUIRED_TEXTS}
    wrong = [key for key, value in texts.items() if not isinstance(value, str)]
    numbers: dict[str, Any] = {key: content.get(key) for key in ("magnification", "mpp")}
    wrong += [key for key, value in numbers.items() if not _is_number_or_none(value)]
    class_names = content.get("class_names")
    if not _is_list_of_texts(class_names) or not class_names:
        wrong.append("class_names")
    wrong += [key for key in ("source", "conversion") if not isinstance(content.get(key, {}), dict)]
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
    )


def _is_number_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _items_from_json(
    entries: Any, split: str, folder: Path, metadata: DatasetMetadata
) -> list[dict[str, str]]:
    if not isinstance(entries, list):
        raise DatasetError(f"{folder / DATASET_FILE}: '{split}' is not a list of items.")
    items = []
    for number, entry in enumerate(entries):
        where = f"{folder / DATASET_FILE}: {split}[{number}]"
        if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
            raise DatasetError(f"{where}: expected an object whose values are texts, found {entry!r}.")
        missing = [key for key in REQUIRED_ITEM_KEYS if not entry.get(key)]
        if missing:
            raise DatasetError(f"{where}: without {', '.join(missing)}.")
        if entry["domain"] != metadata.domain:
            raise DatasetError(f"{where}: domain '{entry['domain']}', expected '{metadata.domain}'.")
        paths = {key: str(_path_inside(entry[key], folder, where)) for key in FILE_KEYS if key in entry}
        items.append({**entry, **paths})
    return items


def _path_inside(relative: str, folder: Path, where: str) -> Path:
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or "\\" in relative or ":" in relative:
        raise DatasetError(f"{where}: '{relative}' is not a path below the dataset folder.")
    return folder / path


def relative_items(items: Iterable[Mapping[str, str]], folder: Path) -> list[dict[str, str]]:
    """Return items as ``dataset.json`` holds them: file paths relative to ``folder``, with slashes."""
    return [
        {
            key: Path(value).relative_to(folder).as_posix() if key in FILE_KEYS else value
            for key, value in item.items()
        }
        for item in items
    ]
