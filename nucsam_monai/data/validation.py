"""Check every file of a dataset folder and report everything that is wrong at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nucsam_monai.data.dataset import DATASET_FILE, FILE_KEYS, Dataset, read_dataset
from nucsam_monai.data.label_files import read_classes, read_image, read_instances
from nucsam_monai.data.protocols import UNUSED, divided_groups
from nucsam_monai.data.writer import SplitCounts
from nucsam_monai.utils.errors import DatasetError
from nucsam_monai.utils.files import is_junk

_SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class DatasetSummary:
    """Summarise a valid dataset in numbers.

    Attributes:
        folder: the dataset folder.
        name: name of the dataset.
        domain: domain of its items.
        splits: images and nuclei per split, and of the unused ones where the protocol leaves some out.
    """

    folder: Path
    name: str
    domain: str
    splits: dict[str, SplitCounts]


def validate_dataset(folder: Path | str) -> DatasetSummary:
    """Open every file of a dataset folder and compare it with the format.

    Raises:
        DatasetError: there are problems; the message gives their number and the first 20.
    """
    dataset = read_dataset(folder)
    problems = [*_structure_problems(dataset), *_stray_files(dataset)]
    parts = {**dataset.splits, UNUSED: dataset.unused}
    nuclei = dict.fromkeys(parts, 0)
    for split, items in parts.items():
        for item in items:
            count, found = _check_sample(item, len(dataset.metadata.class_names))
            nuclei[split] += count
            problems += [f"{split}/{item['id']}: {problem}" for problem in found]
    if problems:
        shown = "\n".join(f"  - {problem}" for problem in problems[:_SHOWN_PROBLEMS])
        more = f"\n  and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise DatasetError(f"{dataset.folder}: {len(problems)} problem(s):\n{shown}{more}")
    return DatasetSummary(
        folder=dataset.folder,
        name=dataset.metadata.name,
        domain=dataset.metadata.domain,
        splits={
            part: SplitCounts(len(items), nuclei[part])
            for part, items in parts.items()
            if items or part != UNUSED
        },
    )


def _structure_problems(dataset: Dataset) -> Iterator[str]:
    """Yield what is wrong between items: repeated ids and files, divided groups, classes of some only."""
    first_split: dict[str, str] = {}
    owner: dict[str, str] = {}
    with_classes = 0
    metadata = dataset.metadata
    if metadata.protocol is None or not metadata.protocols[metadata.protocol].divides_groups:
        ids = {split: [item["id"] for item in items] for split, items in dataset.splits.items()}
        yield from divided_groups(ids, {item["id"]: item.get("group") for item in dataset.items()})
    for split, items in {**dataset.splits, UNUSED: dataset.unused}.items():
        for item in items:
            sample_id = item["id"]
            if sample_id.lower() in first_split:
                yield f"id '{sample_id}' is in '{first_split[sample_id.lower()]}' and again in '{split}'"
            first_split.setdefault(sample_id.lower(), split)
            for key in FILE_KEYS:
                if key in item and owner.setdefault(item[key], sample_id) != sample_id:
                    yield f"{item[key]} belongs to '{owner[item[key]]}' and to '{sample_id}'"
            with_classes += "classes" in item
    total = len(dataset.items())
    if total == 0:
        yield f"{DATASET_FILE} has no items"
    if with_classes not in (0, total):
        yield f"{with_classes} of {total} items have classes; expected all or none"


def _stray_files(dataset: Dataset) -> Iterator[str]:
    expected = {Path(item[key]) for item in dataset.items() for key in FILE_KEYS if key in item}
    expected |= {dataset.folder / DATASET_FILE, dataset.folder / "README.md"}
    for path in sorted(dataset.folder.rglob("*")):
        relative = path.relative_to(dataset.folder).as_posix()
        if path.is_file() and path not in expected and not is_junk(relative):
            yield f"{relative}: not named in {DATASET_FILE}"


def _check_sample(item: dict[str, str], class_count: int) -> tuple[int, list[str]]:
    """Return the number of nuclei and the problems of one sample."""
    problems = []
    image_shape = None
    try:
        image_shape = read_image(item["image"]).shape[:2]
    except DatasetError as error:
        problems.append(str(error))
    try:
        instances = read_instances(item["instances"])
    except DatasetError as error:
        return 0, [*problems, str(error)]
    if image_shape is not None and instances.shape != image_shape:
        problems.append(f"image is {image_shape}, instance map is {instances.shape}")
    ids = np.unique(instances)
    ids = ids[ids != 0]
    if ids.size and ids[-1] != ids.size:
        problems.append(f"{ids.size} instances with ids up to {ids[-1]}; expected contiguous ids from 1")
    if "classes" in item:
        problems += _class_problems(item["classes"], {int(instance_id) for instance_id in ids}, class_count)
    return int(ids.size), problems


def _class_problems(path: str, ids: set[int], class_count: int) -> Iterator[str]:
    try:
        classes = read_classes(path)
    except DatasetError as error:
        yield str(error)
        return
    if unknown := sorted(set(classes) - ids):
        yield f"classes of {len(unknown)} instances that do not exist: {unknown[:5]}"
    if missing := sorted(ids - set(classes)):
        yield f"{len(missing)} instances without a class: {missing[:5]}"
    if wrong := sorted({value for value in classes.values() if not 0 <= value < class_count}):
        yield f"class ids {wrong[:5]}; expected 0 to {class_count - 1}"
