"""Find runs of equal pixels and measure by them; a nuclei image has about twenty times fewer runs than pixels."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK_PX = 1 << 18  # small enough for the processor's cache
_LOOKUP_TABLE_MAX_ID = 1 << 22  # 4 MB of flags; larger ids are sorted instead


class LabelRuns(NamedTuple):
    """Hold the ``k`` runs of pixels, each within one row, in which no map changes; every pixel is in one run.

    Attributes:
        starts: ``(k,)`` int64 index of the first pixel of each run in the flattened map, rising.
        lengths: ``(k,)`` int64 number of pixels.
        width: width of the maps in pixels.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    width: int


def label_runs(*maps: NDArray[Any]) -> LabelRuns:
    """Find the runs of one label map, or the common runs of several.

    Args:
        *maps: ``(H, W)`` arrays of one shape.
    """
    height, width = maps[0].shape
    if not height * width:
        return LabelRuns(np.zeros(0, np.int64), np.zeros(0, np.int64), width)
    block_px = min(max(_BLOCK_PX // width, 1), height) * width
    begins, changed = np.empty(block_px, dtype=bool), np.empty(block_px - 1, dtype=bool)
    starts = []
    for first in range(0, height * width, block_px):
        rows = slice(first // width, (first + block_px) // width)
        blocks = [labels[rows].ravel() for labels in maps]
        size = len(blocks[0])
        np.not_equal(blocks[0][1:], blocks[0][:-1], out=begins[1:size])
        for block in blocks[1:]:
            begins[1:size] |= np.not_equal(block[1:], block[:-1], out=changed[: size - 1])
        begins[:size:width] = True  # the first pixel of a row always begins a run
        starts.append(np.flatnonzero(begins[:size]) + first)
    all_starts = np.concatenate(starts)
    return LabelRuns(all_starts, np.diff(all_starts, append=height * width), width)


def rank_ids(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the non-zero ids in ascending order and, for every value, its id's rank; -1 for background.

    Args:
        values: ``(k,)`` integers >= 0.
    """
    if values.size and values.max() <= _LOOKUP_TABLE_MAX_ID:
        indices = values.astype(np.intp)
        present = np.zeros(int(values.max()) + 1, dtype=bool)
        present[indices] = True
        present[0] = False
        ids = np.flatnonzero(present)
        ranks = np.full(len(present), -1, dtype=np.int64)
        ranks[ids] = np.arange(len(ids))
        return ids.astype(values.dtype), ranks.take(indices)
    ids, ranks = np.unique(values, return_inverse=True)
    if ids.size and ids[0] == 0:
        return ids[1:], ranks - 1
    return ids, ranks


def areas_px(runs: LabelRuns, ranks: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the ``(count,)`` area of every instance.

    Args:
        runs: ``k`` runs.
        ranks: ``(k,)`` rank of the instance of each run, -1 for background.
        count: number of instances.
    """
    # bincount adds in float64, which is exact up to 2**53 pixels
    return np.bincount(ranks + 1, weights=runs.lengths, minlength=count + 1)[1:].astype(np.int64)


class _Moments(NamedTuple):
    """Contribution of each of ``k`` runs to the centre of its instance; sums of integers, so that they are exact.

    Attributes:
        doubled_x: ``(k,)`` float64 twice the sum of the columns of its pixels.
        y: ``(k,)`` float64 sum of the rows of its pixels.
    """

    doubled_x: NDArray[np.float64]
    y: NDArray[np.float64]


def moments(runs: LabelRuns) -> _Moments:
    """Return the sums of the columns and rows of every run."""
    rows = runs.starts // max(runs.width, 1)
    columns = runs.starts - rows * runs.width
    doubled_x = runs.lengths * (2 * columns + runs.lengths - 1)
    return _Moments(doubled_x.astype(np.float64), (runs.lengths * rows).astype(np.float64))


def centroids_xy_of(
    run_moments: _Moments, ranks: NDArray[np.int64], areas: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the ``(n, 2)`` centre of mass of every instance as x, y.

    Args:
        run_moments: moments of ``k`` runs.
        ranks: ``(k,)`` rank of the instance of each run, -1 for background.
        areas: ``(n,)`` area of every instance, in square pixels.
    """
    count = len(areas) + 1
    doubled_x = np.bincount(ranks + 1, weights=run_moments.doubled_x, minlength=count)[1:]
    y = np.bincount(ranks + 1, weights=run_moments.y, minlength=count)[1:]
    return np.stack((doubled_x / (2 * areas), y / areas), axis=1)


def majority_values(instances: NDArray[Any], values: NDArray[Any]) -> dict[int, int]:
    """Give every instance the value of most of its pixels.

    The value 0 does not vote, and equal votes go to the lower value.

    Args:
        instances: ``(H, W)`` integers >= 0, 0 = background.
        values: ``(H, W)`` integers >= 0, 0 = no class.

    Returns:
        ``{instance id: value}`` in ascending order of the ids; an instance without any vote is left out.

    Example:
        >>> majority_values(np.array([[1, 1, 7, 9]]), np.array([[2, 0, 3, 0]]))
        {1: 2, 7: 3}
    """
    runs = label_runs(instances, values)
    run_ids, run_values = instances.ravel()[runs.starts], values.ravel()[runs.starts]
    voting = (run_ids > 0) & (run_values > 0)
    ids, rows = np.unique(run_ids[voting], return_inverse=True)
    candidates, columns = np.unique(run_values[voting], return_inverse=True)
    ballots, ballot_of_run = np.unique(rows * len(candidates) + columns, return_inverse=True)
    votes = np.bincount(ballot_of_run, weights=runs.lengths[voting], minlength=len(ballots))
    rows, columns = np.divmod(ballots, max(len(candidates), 1))
    best_first = np.lexsort((columns, -votes, rows))
    _, first = np.unique(rows[best_first], return_index=True)
    winners = candidates[columns[best_first[first]]]
    return dict(zip(ids.tolist(), winners.tolist(), strict=True))
