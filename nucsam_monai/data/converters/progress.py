"""Show a progress bar on a terminal."""

import sys
from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def with_progress(items: Iterable[Item], title: str, unit: str, total: int | None = None) -> Iterable[Item]:
    """Return ``items`` so that iterating over them moves a bar on the terminal; no bar without a terminal.

    Args:
        items: items to iterate over.
        title: stands before the bar.
        unit: name of one item, for example ``"image"``.
        total: number of items, where they have no length.
    """
    if not sys.stderr.isatty():
        return items
    try:
        from tqdm import tqdm
    except ImportError:  # as in MONAI, a bar is a courtesy and never a reason to stop
        return items
    return tqdm(items, desc=title, unit=unit, total=total)
