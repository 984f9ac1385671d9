"""Read a dataset folder as MONAI items, with its metadata.

::

    <name>/dataset.json         MONAI datalist with the metadata, the splits and the named protocols
    <name>/images/<id>.png      RGB uint8
    <name>/instances/<id>.png   uint16 (TIFF int32 past 65535 nuclei): 0 background, ids 1..n
    <name>/classes/<id>.json    {instance id: class id}, where the dataset has classes
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from nucsam_monai.data.protocols import UNUSED, Protocol, is_list_of_texts, protocols_from_json
from nucsam_monai.data.splits import SPLITS
from nucsam_monai.utils.errors import ConfigurationError, DatasetError

logger = logging.getLogger(__name__)

_REQUIRED_TEXTS = ("name", "domain", "modality", "licence", "citation")
DATASET_FILE = "dataset.json"
NO_CLASSES = ("nucleus",)
FILE_KEYS = ("image", "instances", "classes")
REQUIRED_ITEM_KEYS = ("image", "instances", "domain", "id")


@dataclass(frozen=True)
class DatasetMetadata:
    """Describe a dataset as a whole.

    Attributes:
        name: name of the dataset, for example ``"monuseg"``.
        domain: the domain that its items carry; domain-conditioned methods distinguish datasets by it.
        modality: stain or kind of microscopy, in words.
        magnification: objective magnification (``40.0`` for 40x); None if mixed or unknown.
        mpp: micrometres per pixel; None if mixed or unknown.
        class_names: names of the classes, indexed by class id from 0; ``("nucleus",)`` without classes.
        licence: licence of images and annotations.
        citation: publication to cite.
        source: ``{file name: sha256}`` of the files that the dataset was converted from.
        conversion: options and counts of the conversion, for readers of ``dataset.json``.
        protocols: named splits of the dataset.
        protocol: named split that ``dataset.json`` uses; None if there are no named splits.
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


def _metadata_from_json(content: Mapping[str, Any], file: Path) -> DatasetMetadata:
    """Read the metadata out of the content of ``dataset.json``.

    Raises:
        DatasetError: a required entry is missing, or an entry is of the wrong type.
    """
    texts: dict[str, Any] = {key: content.get(key) for key in _REQUIRED_TEXTS}
    wrong = [key for key, value in texts.items() if not isinstance(value, str)]
    numbers: dict[str, Any] = {key: content.get(key) for key in ("magnification", "mpp")}
    wrong += [key for key, value in numbers.items() if not _is_number_or_none(value)]
    class_names = content.get("class_names")
    if not is_list_of_texts(class_names) or not class_names:
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


@dataclass(frozen=True)
class Dataset:
    """Hold the content of a dataset folder.

    Attributes:
        folder: absolute path of the folder.
        metadata: description of the dataset.
        splits: ``{"training" | "validation" | "test": items}``; each item is ``{"image", "instances",
            "classes"?, "domain", "id", "tissue"?, "group"?, "fold"?}`` with absolute paths as strings.
        unused: items that are not in the named split.
    """

    folder: Path
    metadata: DatasetMetadata
    splits: Mapping[str, list[dict[str, str]]]
    unused: Sequence[dict[str, str]] = ()

    def with_protocol(self, name: str) -> "Dataset":
        """Return the same dataset split by another of its protocols.

        Raises:
            ConfigurationError: it has no such protocol.
        """
        protocols = self.metadata.protocols
        if name not in protocols:
            raise ConfigurationError(
                f"protocol '{name}': dataset '{self.metadata.name}' has {', '.join(protocols) or 'none'}."
            )
        items = {item["id"]: item for item in self.items()}
        splits = {
            split: [items.pop(sample_id) for sample_id in ids]
            for split, ids in protocols[name].splits.items()
        }
        metadata = replace(self.metadata, protocol=name)
        return Dataset(self.folder, metadata, splits, unused=tuple(items.values()))

    def items(self) -> list[dict[str, str]]:
        """Return the items of all splits and the unused ones."""
        return [*(item for items in self.splits.values() for item in items), *self.unused]


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
        raise DatasetError(f"{folder}: no {DATASET_FILE}. Make it with: nucsam datasets.") from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: not readable as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file}: expected a JSON object, found {type(content).__name__}.")
    metadata = _metadata_from_json(content, file)
    items = {key: _items_from_json(content.get(key, []), key, folder, metadata) for key in (*SPLITS, UNUSED)}
    unused = tuple(items.pop(UNUSED))
    dataset = Dataset(folder, metadata, items, unused)
    groups = {item["id"]: item.get("group") for item in dataset.items()}
    for name, protocol in metadata.protocols.items():
        for problem in protocol.problems(groups):
            raise DatasetError(f"{file}: protocol '{name}': {problem}. Prepare the dataset again.")
    return dataset


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
        "one with: nucsam datasets."
    )


def load_items(
    dataset_dir: Path | str,
    splits: str | Sequence[str],
    domains: str | Sequence[str] | None = None,
    protocol: str | Mapping[str, str] | None = None,
) -> list[dict[str, str]]:
    """Load the items of one or several splits from all datasets, in the order of ``domains``.

    Args:
        dataset_dir: one dataset folder, or a folder of several.
        splits: any of ``"training"``, ``"validation"`` and ``"test"``.
        domains: domains to load. Default: all.
        protocol: named split to use instead of the default one; ``{dataset name: named split}`` for several datasets.

    Returns:
        Items for ``monai.data.Dataset``; see :class:`Dataset`.

    Raises:
        ConfigurationError: a split, a domain or a protocol is unknown.
        DatasetError: there is no dataset, or no item in these splits.
    """
    splits = [splits] if isinstance(splits, str) else list(splits)
    for split in splits:
        if split not in SPLITS:
            raise ConfigurationError(f"split '{split}': expected one of {', '.join(SPLITS)}.")
    datasets = _read_datasets(dataset_dir, protocol)
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
            f"splits with images are {', '.join(filled) or 'none'}. Prepare the dataset again with more images or with "
            "a split of your own (--splits)."
        )
    return items


def training_domains(dataset_dir: Path | str, protocol: str | Mapping[str, str] | None = None) -> list[str]:
    """Return the domains that have training items, sorted: the order of a model's domain queries.

    Args:
        dataset_dir: one dataset folder, or a folder of several.
        protocol: named split, see :func:`load_items`.

    Raises:
        ConfigurationError: a protocol is unknown.
        DatasetError: there is no dataset.
    """
    datasets = _read_datasets(dataset_dir, protocol)
    return sorted({dataset.metadata.domain for dataset in datasets if dataset.splits["training"]})


def class_names(dataset_dir: Path | str) -> list[str]:
    """Return the names of the classes that all datasets have in common, or ``["nucleus"]`` where they differ.

    Args:
        dataset_dir: one dataset folder, or a folder of several.

    Raises:
        DatasetError: there is no dataset.
    """
    datasets = _read_datasets(dataset_dir, None)
    different = {dataset.metadata.class_names for dataset in datasets}
    if len(different) == 1:
        return list(different.pop())
    logger.warning("%s: the datasets have different classes, so all nuclei count as one class.", dataset_dir)
    return [*NO_CLASSES]


def domain_classes(dataset_dir: Path | str, domain: str) -> list[str]:
    """Return the names of the classes of a domain.

    Args:
        dataset_dir: one dataset folder, or a folder of several.
        domain: name of the domain.

    Raises:
        ConfigurationError: datasets of the domain have different classes.
        DatasetError: there is no dataset.
    """
    datasets = [one for one in _read_datasets(dataset_dir, None) if one.metadata.domain == domain]
    names = sorted({one.metadata.class_names for one in datasets})
    if len(names) > 1:
        raise ConfigurationError(
            f"domain '{domain}': its datasets in {dataset_dir} have different classes, {names[0]} and {names[1]}. "
            "Give one of them another domain."
        )
    return list(names[0]) if names else [*NO_CLASSES]


def _read_datasets(dataset_dir: Path | str, protocol: str | Mapping[str, str] | None) -> list[Dataset]:
    datasets = [read_dataset(folder) for folder in find_datasets(dataset_dir)]
    if protocol is None:
        return datasets
    names = {dataset.metadata.name for dataset in datasets}
    chosen = dict.fromkeys(names, protocol) if isinstance(protocol, str) else protocol
    if unknown := sorted(set(chosen) - names):
        raise ConfigurationError(
            f"protocol: dataset '{unknown[0]}' is not in {dataset_dir}, which has {', '.join(sorted(names))}."
        )
    return [
        dataset.with_protocol(chosen[dataset.metadata.name]) if dataset.metadata.name in chosen else dataset
        for dataset in datasets
    ]


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
