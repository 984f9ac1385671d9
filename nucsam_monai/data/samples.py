"""One sample of a dataset: what a converter decodes, and the files that it becomes."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nucsam_monai.data.label_files import renumber, write_classes, write_image, write_instances
from nucsam_monai.utils.errors import DatasetError

# An id is a file name on every operating system.
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._()+-]{0,199}(?<![ .])")


@dataclass(frozen=True)
class Sample:
    """One image with its annotation.

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
    """A sample that is still to be decoded, perhaps in another process.

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
        """What an item says of the sample beside its files."""
        return {"tissue": self.tissue, "group": self.group, "fold": self.fold}


@dataclass(frozen=True)
class WrittenSample:
    """The files of one sample.

    Attributes:
        files: ``{"image" | "instances" | "classes": absolute path}``.
        nuclei: number of instances.
        dropped: see :class:`Sample`.
    """

    files: Mapping[str, str]
    nuclei: int
    dropped: Mapping[str, int]


def check_sample_id(sample_id: str) -> None:
    """Check that an id can be a file name.

    Raises:
        DatasetError: it can not.
    """
    if not _SAFE_ID.fullmatch(sample_id):
        raise DatasetError(f"sample id {sample_id!r}: not usable as a file name.")


def write_sample(root: Path, sample_id: str, sample: Sample, class_names: tuple[str, ...]) -> WrittenSample:
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
    return WrittenSample(files, len(new_ids), sample.dropped)


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
