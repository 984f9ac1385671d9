"""From the splits of a dataset to its protocols."""

from collections.abc import Iterable, Mapping

from nucsam_monai.data.converters.conversion import DatasetInfo
from nucsam_monai.data.protocols import Protocol

Splits = Mapping[str, Iterable[str]]
"""``{"training" | "validation" | "test": ids}``; absent splits are empty."""


def named_protocols(
    info: DatasetInfo, splits: Mapping[str, Splits], groups: Mapping[str, str] | None = None
) -> dict[str, Protocol]:
    """Make the protocols of a dataset of splits that are drawn already.

    A protocol other than the first needs test images; where the source has none it is left out. Whether a
    protocol divides groups is found out, not assumed.

    Args:
        info: what is known of the dataset; its protocols have the descriptions.
        splits: ``{protocol: {split: ids}}`` in the order of ``info.protocols``.
        groups: ``{id: slide or patient}``, where known.
    """
    protocols: dict[str, Protocol] = {}
    for name, named in splits.items():
        ids = {split: tuple(members) for split, members in named.items()}
        if protocols and not ids.get("test"):
            continue
        divides = divides_groups(ids, groups or {})
        protocols[name] = Protocol.from_splits(ids, info.protocols[name], divides_groups=divides)
    return protocols


def divides_groups(splits: Splits, groups: Mapping[str, str]) -> bool:
    """Tell whether images of one slide or patient are in several splits.

    Example:
        >>> divides_groups({"training": ["a"], "test": ["b"]}, {"a": "slide1", "b": "slide1"})
        True
    """
    split_of_group: dict[str, str] = {}
    return any(
        split_of_group.setdefault(groups[sample_id], split) != split
        for split, ids in splits.items()
        for sample_id in ids
        if sample_id in groups
    )
