"""What every converter returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nucsam_monai.data.writer import SplitCounts


@dataclass(frozen=True)
class ConversionSummary:
    """A finished conversion in numbers.

    Attributes:
        folder: the dataset folder that was written.
        name: name of the dataset.
        splits: images and nuclei per split.
        dropped: ``{why: how many}`` annotations that are not in the instance maps.
    """

    folder: Path
    name: str
    splits: Mapping[str, SplitCounts]
    dropped: Mapping[str, int] = field(default_factory=dict)
