"""Writing a dataset folder sample by sample; it appears whole or not at all."""

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from nucsam_monai.data.dataset import DATASET_FILE, DatasetMetadata, relative_items
from nucsam_monai.data.label_files import renumber, write_classes, write_image, write_instances
from nucsam_monai.data.splits import SPLITS
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from nucsam_monai.utils.files import atomic_directory

# An id is a file name on every operating system.
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._()+-]{0,199}(?<![ .])")


@dataclass(frozen=True)
class SplitCounts:
    """How much one split holds."""

    images: int = 0
    nuclei: int = 0


class DatasetWriter:
    """Write a dataset folder as its samples come.

    Everything goes to a hidden folder beside ``folder`` which takes its name when the ``with`` block ends
    without an error; otherwise nothing is left.

    Args:
        folder: the dataset folder; it must not exist or be empty.
        metadata: what is known before the first sample; see :meth:`note` for what is known after the last.

    Raises:
        DatasetError: on entry, ``folder`` holds something already.

    Example:
        >>> with DatasetWriter("data/mine", metadata) as writer:  # doctest: +SKIP
        ...     writer.add("training", "slide1_0", image, instances, group="slide1")
    """

    def __init__(self, folder: Path | str, metadata: DatasetMetadata) -> None:
        self.folder = Path(folder)
        self.metadata = metadata
        self._stack = ExitStack()
        self._items: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
        self._nuclei = dict.fromkeys(SPLITS, 0)
        self._ids: set[str] = set()
        self._group_splits: dict[str, str] = {}
        self._notes: dict[str, Any] = {}

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
            split: ``"training"``, ``"validation"`` or ``"test"``.
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
        if split not in SPLITS:
            raise ConfigurationError(f"split '{split}': expected one of {', '.join(SPLITS)}.")
        self._check_sample(sample_id, image, instances)
        if group is not None and self._group_splits.setdefault(group, split) != split:
            raise DatasetError(
                f"{sample_id}: group '{group}' is in '{self._group_splits[group]}' and '{split}'; "
                "a group must stay in one split."
            )
        contiguous, new_ids = renumber(instances)
        image_file = self._root / "images" / f"{sample_id}.png"
        write_image(image_file, image)
        item = {
            "image": str(image_file),
            "instances": str(write_instances(self._root / "instances", sample_id, contiguous)),
        }
        if classes is not None:
            item["classes"] = str(self._write_classes(sample_id, classes, new_ids))
        item |= {"domain": self.metadata.domain, "id": sample_id}
        item |= {key: value for key, value in (("tissue", tissue), ("group", group)) if value is not None}
        self._items[split].append(item)
        self._nuclei[split] += len(new_ids)

    def note(self, **facts: Any) -> None:
        """Add facts to ``conversion`` in ``dataset.json``, for example how many regions were dropped."""
        self._notes.update(facts)

    @property
    def counts(self) -> dict[str, SplitCounts]:
        """Images and nuclei per split so far."""
        return {split: SplitCounts(len(self._items[split]), self._nuclei[split]) for split in SPLITS}

    def _check_sample(self, sample_id: str, image: np.ndarray, instances: np.ndarray) -> None:
        if not _SAFE_ID.fullmatch(sample_id):
            raise DatasetError(f"sample id {sample_id!r}: not usable as a file name.")
        if sample_id.lower() in self._ids:
            raise DatasetError(f"sample id '{sample_id}' occurs twice (letter case does not count).")
        self._ids.add(sample_id.lower())
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DatasetError(
                f"{sample_id}: image is {image.dtype} {image.shape}, expected uint8 (H, W, 3)."
            )
        if instances.shape != image.shape[:2]:
            raise DatasetError(f"{sample_id}: image is {image.shape[:2]}, instance map is {instances.shape}.")
        if not np.issubdtype(instances.dtype, np.integer) or instances.min(initial=0) < 0:
            raise DatasetError(f"{sample_id}: instance ids must be integers from 0, found {instances.dtype}.")

    def _write_classes(self, sample_id: str, classes: Mapping[int, int], new_ids: Mapping[int, int]) -> Path:
        without = sorted(set(new_ids) - set(classes))
        if without:
            raise DatasetError(f"{sample_id}: no class for instances {without[:5]} ({len(without)} in all).")
        remapped = {new: int(classes[old]) for old, new in new_ids.items()}
        unknown = sorted(set(remapped.values()) - set(range(len(self.metadata.class_names))))
        if unknown:
            raise DatasetError(
                f"{sample_id}: class ids {unknown}, expected 0 to {len(self.metadata.class_names) - 1} "
                f"({', '.join(self.metadata.class_names)})."
            )
        path = self._root / "classes" / f"{sample_id}.json"
        path.parent.mkdir(exist_ok=True)
        write_classes(path, remapped)
        return path

    def _write_json(self) -> None:
        if not self._ids:
            raise DatasetError(f"{self.folder}: no sample was written.")
        content = asdict(self.metadata)
        counts = {split: asdict(count) for split, count in self.counts.items()}
        content["conversion"] = {**self.metadata.conversion, **self._notes, "counts": counts}
        for split in SPLITS:
            content[split] = relative_items(self._items[split], self._root)
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (self._root / DATASET_FILE).write_text(text, encoding="utf-8")
