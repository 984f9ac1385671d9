"""Define named splits: the images that a paper, a challenge or this package uses for training, validation and test."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nucsam_monai.data.splits import SPLITS
from nucsam_monai.utils.errors import DatasetError

UNUSED = "unused"
"""The key of ``dataset.json`` that holds the items which the chosen protocol leaves out."""


@dataclass(frozen=True)
class Protocol:
    """Hold a named split of a dataset, with the ids of all images so that runs can be repeated.

    Attributes:
        training: ids of the training images.
        validation: ids of the images that select the weights.
        test: ids of the images for which results are reported.
        description: origin of the split and how it was drawn, in one sentence.
        divides_groups: whether images of one slide or patient may be in several splits, as in many published splits;
            otherwise that is an error.
    """

    training: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    description: str = ""
    divides_groups: bool = False

    @classmethod
    def from_splits(
        cls, splits: Mapping[str, Iterable[str]], description: str, *, divides_groups: bool = False
    ) -> "Protocol":
        """Make a protocol of ``{split: ids}``; ids are sorted, absent splits are empty."""
        ids = {split: tuple(sorted(splits.get(split, ()))) for split in SPLITS}
        return cls(**ids, description=description, divides_groups=divides_groups)

    @property
    def splits(self) -> dict[str, tuple[str, ...]]:
        """``{"training" | "validation" | "test": ids}``."""
        return {"training": self.training, "validation": self.validation, "test": self.test}

    def split_of_id(self) -> dict[str, str]:
        """Return ``{id: split}``."""
        return {sample_id: split for split, ids in self.splits.items() for sample_id in ids}

    def problems(self, groups: Mapping[str, str | None]) -> Iterator[str]:
        """Yield what is wrong with it for a dataset whose images are the keys of ``{id: group}``."""
        split_of_id: dict[str, str] = {}
        for split, ids in self.splits.items():
            for sample_id in ids:
                if sample_id not in groups:
                    yield f"id '{sample_id}' of '{split}' is not in the dataset"
                if sample_id in split_of_id:
                    yield f"id '{sample_id}' is in '{split_of_id[sample_id]}' and again in '{split}'"
                split_of_id[sample_id] = split
        if not self.divides_groups:
            yield from divided_groups(self.splits, groups)


def divided_groups(splits: Mapping[str, Iterable[str]], groups: Mapping[str, str | None]) -> Iterator[str]:
    """Yield a sentence for every image whose slide or patient is also in an earlier split.

    Args:
        splits: ``{split: ids}``.
        groups: ``{id: slide or patient}``, where known.

    Example:
        >>> list(divided_groups({"training": ["a"], "test": ["b"]}, {"a": "slide1", "b": "slide1"}))
        ["group 'slide1' is in 'training' and in 'test'"]
    """
    split_of_group: dict[str, str] = {}
    for split, ids in splits.items():
        for sample_id in ids:
            group = groups.get(sample_id)
            if group and split_of_group.setdefault(group, split) != split:
                yield f"group '{group}' is in '{split_of_group[group]}' and in '{split}'"


def protocols_from_json(content: Any, where: str) -> dict[str, Protocol]:
    """Read the ``protocols`` of ``dataset.json``.

    Raises:
        DatasetError: it is not ``{name: {split: [id, ...], "description", "divides_groups"}}``.
    """
    if not isinstance(content, dict):
        raise DatasetError(f"{where}: 'protocols' is not an object.")
    protocols = {}
    for name, entry in content.items():
        if not isinstance(entry, dict) or not all(is_list_of_texts(entry.get(split)) for split in SPLITS):
            raise DatasetError(f"{where}: protocol '{name}' is not an object with lists of ids.")
        protocols[name] = Protocol(
            **{split: tuple(entry[split]) for split in SPLITS},
            description=str(entry.get("description", "")),
            divides_groups=bool(entry.get("divides_groups", False)),
        )
    return protocols


def is_list_of_texts(value: Any) -> bool:
    """Return whether a value of a JSON document is a list of texts."""
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
