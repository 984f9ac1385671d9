"""A progress bar where somebody watches."""

import sys
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def with_progress(items: Sequence[Item], title: str, unit: str) -> Sequence[Item]:
    """Return ``items`` so that iterating over them moves a bar on the terminal; no bar without a terminal."""
    if not sys.stderr.isatty():
        return items
    try:
        from tqdm import tqdm
    except ImportError:  # as in MONAI, a bar is a courtesy and never a reason to stop
        return items
    return tqdm(items, desc=title, unit=unit)
