"""Write a dataset folder sample by sample; it is written completely or not at all."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from nucsam_monai.data.dataset import DATASET_FILE, DatasetMetadata, relative_items
from nucsam_monai.data.label_files import renumber, write_classes, write_image, write_instances
from nucsam_monai.data.protocols import UNUSED
from nucsam_monai.data.splits import SPLITS
from nucsam_monai.utils.errors import ConfigurationError, DatasetError, NucSAMError
from nucsam_monai.utils.files import atomic_directory
from nucsam_monai.utils.parallel import map_in_order

# What some operating system has no file name for, undecodable bytes (as surrogates) and hidden names included.
_NOT_IN_AN_ID = re.compile(
    r"""[\\/:*?"<>|\x00-\x1f\x7f\ud800-\udfff]|^\.|[ .]+$|^(?=(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))""",
    re.IGNORECASE,
)
_MOST_PROBLEMS = 20
_LONGEST_ID_BYTES = 200  # leaves room for what output files append


@dataclass(frozen=True)
class Sample:
    """Hold one image with its annotation.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        instances: ``(H, W)`` non-negative integers, 0 = background, any ids.
        classes: ``{id in instances: class id}`` for every instance, where the dataset has classes.
        dropped: ``{why: how many}`` annotations that are not in ``instances``.
    """

    image: np.ndarray
    instances: np.ndarray
    classes: Mapping[int, int] | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleJob:
    """Describe a sample that is still to be decoded, possibly in another process.

    Attributes:
        sample_id: file name of the sample without suffix.
        decode: returns the sample; a :func:`functools.partial` of a module's function, which can be sent to
            another process.
        tissue: organ or tissue.
        group: slide or patient, which a split should not divide.
        fold: the fold of a published cross-validation that the sample belongs to.
    """

    sample_id: str
    decode: Callable[[], Sample]
    tissue: str | None = None
    group: str | None = None
    fold: str | None = None

    @property
    def facts(self) -> dict[str, str | None]:
        """Tissue, group and fold, as an item of ``dataset.json`` has them."""
        return {"tissue": self.tissue, "group": self.group, "fold": self.fold}


@dataclass(frozen=True)
class _WrittenSample:
    """The files of one sample.

    Attributes:
        files: ``{"image" | "instances" | "classes": absolute path}``.
        nuclei: number of instances.
        dropped: number of dropped nuclei, see :class:`Sample`.
    """

    files: Mapping[str, str]
    nuclei: int
    dropped: Mapping[str, int]


def sample_id_of(name: str) -> str:
    """Return a name as a sample id: the same, with ``_`` for what is not a file name on every operating system.

    Example:
        >>> sample_id_of("(2) Fall_Müller"), sample_id_of("10:30 h.")
        ('(2) Fall_Müller', '10_30 h_')
    """
    return _NOT_IN_AN_ID.sub("_", unicodedata.normalize("NFC", name))


def _check_sample_id(sample_id: str) -> None:
    """Check that an id can be a file name.

    Raises:
        DatasetError: it can not.
    """
    usable = sample_id and sample_id_of(sample_id) == sample_id
    if not usable or len(sample_id.encode()) > _LONGEST_ID_BYTES:
        raise DatasetError(
            f"sample id {sample_id!r}: not usable as a file name on every system, expected 1 to {_LONGEST_ID_BYTES} "
            "bytes without special characters. Rename the image."
        )


def _write_sample(root: Path, sample_id: str, sample: Sample, class_names: tuple[str, ...]) -> _WrittenSample:
    """Write image, instance map with contiguous ids, and classes below ``root``.

    Raises:
        DatasetError: the sample contradicts the format.
    """
    _check_sample(sample_id, sample)
    contiguous, new_ids = renumber(sample.instances)
    image_file = root / "images" / f"{sample_id}.png"
    write_image(image_file, sample.image)
    files = {
        "image": str(image_file),
        "instances": str(write_instances(root / "instances", sample_id, contiguous)),
    }
    if sample.classes is not None:
        classes = _classes_by_new_id(sample_id, sample.classes, new_ids, class_names)
        path = root / "classes" / f"{sample_id}.json"
        path.parent.mkdir(exist_ok=True)
        write_classes(path, classes)
        files["classes"] = str(path)
    return _WrittenSample(files, len(new_ids), sample.dropped)


def _check_sample(sample_id: str, sample: Sample) -> None:
    image, instances = sample.image, sample.instances
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DatasetError(f"{sample_id}: image is {image.dtype} {image.shape}, expected uint8 (H, W, 3).")
    if instances.shape != image.shape[:2]:
        raise DatasetError(f"{sample_id}: image is {image.shape[:2]}, instance map is {instances.shape}.")
    if not np.issubdtype(instances.dtype, np.integer) or instances.min(initial=0) < 0:
        raise DatasetError(f"{sample_id}: instance ids must be integers from 0, found {instances.dtype}.")


def _classes_by_new_id(
    sample_id: str, classes: Mapping[int, int], new_ids: Mapping[int, int], class_names: tuple[str, ...]
) -> dict[int, int]:
    without = sorted(set(new_ids) - set(classes))
    if without:
        raise DatasetError(f"{sample_id}: no class for instances {without[:5]} ({len(without)} in all).")
    remapped = {new: int(classes[old]) for old, new in new_ids.items()}
    if unknown := sorted(set(remapped.values()) - set(range(len(class_names)))):
        raise DatasetError(
            f"{sample_id}: class ids {unknown}, expected 0 to {len(class_names) - 1} ({', '.join(class_names)})."
        )
    return remapped


@dataclass(frozen=True)
class SplitCounts:
    """Count the images and nuclei of one split."""

    images: int = 0
    nuclei: int = 0


class DatasetWriter:
    """Write a dataset folder sample by sample.

    Files are written to a hidden folder next to ``folder``, which is renamed when the ``with`` block ends without an
    error and removed otherwise.

    Args:
        folder: dataset folder; must not exist or must be empty.
        metadata: description of the dataset; see :meth:`note` for facts that are known only after the last sample.

    Attributes:
        dropped: ``{why: how many}`` annotations so far that are not in the instance maps.
        most_nuclei: largest number of nuclei in a sample so far.

    Raises:
        DatasetError: on entry, ``folder`` is not empty; on exit, no sample was written, or a
            protocol does not fit the samples.

    Example:
        >>> with DatasetWriter("data/mine", metadata) as writer:  # doctest: +SKIP
        ...     writer.add("training", "slide1_0", image, instances, group="slide1")
    """

    def __init__(self, folder: Path | str, metadata: DatasetMetadata) -> None:
        self.folder = Path(folder)
        self.metadata = metadata
        self.dropped: Counter[str] = Counter()
        self._stack = ExitStack()
        self._items: dict[str, list[dict[str, str]]] = {part: [] for part in (*SPLITS, UNUSED)}
        self._nuclei = dict.fromkeys(self._items, 0)
        self._ids: set[str] = set()
        self._group_splits: dict[str, str] = {}
        self._notes: dict[str, Any] = {}
        self.most_nuclei = 0
        protocol = metadata.protocols[metadata.protocol] if metadata.protocol else None
        self._split_of_id = protocol.split_of_id() if protocol else {}
        self._keeps_groups = protocol is None or not protocol.divides_groups

    def __enter__(self) -> "DatasetWriter":
        try:
            self._root = self._stack.enter_context(atomic_directory(self.folder))
        except FileExistsError as error:
            raise DatasetError(f"{error} Remove it or name another --output_dir.") from error
        for name in ("images", "instances"):
            (self._root / name).mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:
            if error is None:
                self._write_json()
            else:
                # Hand the error to the folder's context, which then removes the folder.
                self._stack.__exit__(kind, error, traceback)

    def add(
        self,
        split: str,
        sample_id: str,
        image: np.ndarray,
        instances: np.ndarray,
        *,
        classes: Mapping[int, int] | None = None,
        tissue: str | None = None,
        group: str | None = None,
    ) -> None:
        """Write one sample.

        Args:
            split: ``"training"``, ``"validation"``, ``"test"`` or ``"unused"``.
            sample_id: file name of the sample without suffix, unique in the dataset whatever its letter case.
            image: ``(H, W, 3)`` uint8 RGB.
            instances: ``(H, W)`` non-negative integers, 0 = background; ids are made contiguous.
            classes: ``{id in instances: class id}`` for every instance, where the dataset has classes.
            tissue: organ or tissue.
            group: slide or patient, which must stay in one split.

        Raises:
            ConfigurationError: ``split`` is unknown.
            DatasetError: the sample contradicts the format or an earlier sample.
        """
        self._reserve(split, sample_id, group)
        sample = Sample(image, instances, classes)
        written = _write_sample(self._root, sample_id, sample, self.metadata.class_names)
        self._record(split, sample_id, written, {"tissue": tissue, "group": group})

    def add_by_protocol(self, jobs: Iterable[SampleJob], *, workers: int = 1) -> None:
        """Decode and write samples, each to the split that the metadata's protocol gives it.

        Samples that the protocol leaves out become ``unused``. What was dropped is summed in ``dropped``.

        Args:
            jobs: samples; an iterator is consumed only as fast as the workers need.
            workers: number of processes that decode and write; 1 uses this process.

        Raises:
            DatasetError: samples contradict the format or each other; several are all named, up to a limit.
            NucSAMError: the only sample that is wrong cannot be decoded.
        """
        write = partial(_decode_and_write, self._root, self.metadata.class_names)
        problems: list[NucSAMError] = []
        for job, files in map_in_order(write, self._reserved(jobs), workers=workers):
            if isinstance(files, NucSAMError):
                problems.append(files)
                if len(problems) == _MOST_PROBLEMS:
                    break
                continue
            split = self._split_of_id.get(job.sample_id, UNUSED)
            self._record(split, job.sample_id, files, job.facts)
            self.dropped.update(files.dropped)
        if len(problems) == 1:
            raise problems[0]
        if problems:
            shown = "\n".join(f"  {problem}" for problem in problems)
            more = "\n  and perhaps more" if len(problems) == _MOST_PROBLEMS else ""
            raise DatasetError(f"{len(problems)} samples cannot be converted:\n{shown}{more}")

    def note(self, **facts: Any) -> None:
        """Add facts to ``conversion`` in ``dataset.json``, for example how many regions were dropped."""
        self._notes.update(facts)

    @property
    def counts(self) -> dict[str, SplitCounts]:
        """Images and nuclei per split so far, and of the unused ones if there are any."""
        return {
            part: SplitCounts(len(items), self._nuclei[part])
            for part, items in self._items.items()
            if items or part != UNUSED
        }

    def _reserved(self, jobs: Iterable[SampleJob]) -> Iterator[SampleJob]:
        for job in jobs:
            self._reserve(self._split_of_id.get(job.sample_id, UNUSED), job.sample_id, job.group)
            yield job

    def _reserve(self, split: str, sample_id: str, group: str | None) -> None:
        """Check what concerns more than one sample, before the files are written."""
        if split not in self._items:
            raise ConfigurationError(f"split '{split}': expected one of {', '.join(self._items)}.")
        _check_sample_id(sample_id)
        if sample_id.lower() in self._ids:
            raise DatasetError(f"sample id '{sample_id}' occurs twice (letter case does not count).")
        self._ids.add(sample_id.lower())
        if group is None or split == UNUSED or not self._keeps_groups:
            return
        if self._group_splits.setdefault(group, split) != split:
            raise DatasetError(
                f"{sample_id}: group '{group}' is in '{self._group_splits[group]}' and '{split}'; "
                "a group must stay in one split."
            )

    def _record(
        self, split: str, sample_id: str, written: _WrittenSample, facts: Mapping[str, str | None]
    ) -> None:
        item = {**written.files, "domain": self.metadata.domain, "id": sample_id}
        item |= {key: value for key, value in facts.items() if value is not None}
        self._items[split].append(item)
        self._nuclei[split] += written.nuclei
        self.most_nuclei = max(self.most_nuclei, written.nuclei)

    def _write_json(self) -> None:
        if not self._ids:
            raise DatasetError(f"{self.folder}: no sample was written.")
        groups = {item["id"]: item.get("group") for items in self._items.values() for item in items}
        for name, protocol in self.metadata.protocols.items():
            for problem in protocol.problems(groups):
                raise DatasetError(f"{self.folder}: protocol '{name}': {problem}.")
        content = asdict(self.metadata)
        counts = {part: asdict(count) for part, count in self.counts.items()}
        content["conversion"] = {**self.metadata.conversion, **self._notes, "counts": counts}
        for part, items in self._items.items():
            content[part] = relative_items(items, self._root)
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (self._root / DATASET_FILE).write_text(text, encoding="utf-8")


def _decode_and_write(
    root: Path, class_names: tuple[str, ...], job: SampleJob
) -> _WrittenSample | NucSAMError:
    """Write a sample; return what is wrong with it, so that the others are looked at too."""
    try:
        return _write_sample(root, job.sample_id, job.decode(), class_names)
    except NucSAMError as error:
        return error
