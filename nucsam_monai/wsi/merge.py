"""Merge the shards of a slide, so that each nucleus occurs once, with ids 1..n in a fixed order."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from nucsam_monai.wsi.journal import Journal
from nucsam_monai.wsi.nuclei_table import SCHEMA, boxes_of
from nucsam_monai.wsi.shards import SHARD_COLUMNS

SAME_NUCLEUS = 0.25
"""Two nuclei of different shards are the same if they share more than this part of the smaller one."""

_PAIRS_AT_ONCE = 20_000


@dataclass(frozen=True)
class Reported:
    """Hold the nuclei of all shards without outlines; arrays ``(n,)`` in the order of the shards and their rows.

    Attributes:
        shard: index of the shard.
        row: in the shard's file.
        own: whether the nucleus's centroid lies in the shard's core.
        crossing: whether it reaches beyond the core.
        score: score of the nucleus.
        box: ``(n, 4)`` in pixels of level 0.
    """

    shard: np.ndarray
    row: np.ndarray
    own: np.ndarray
    crossing: np.ndarray
    score: np.ndarray
    box: np.ndarray


def merged_shards(journal: Journal, count: int) -> Iterator[pa.Table]:
    """Yield the nuclei of one shard after the other with their final ids; only one shard is in memory.

    Args:
        journal: journal of a slide whose shards are all done.
        count: number of shards.
    """
    keep = kept_nuclei(journal, count)
    first_id = 1
    for index in range(count):
        table = pq.read_table(journal.shard_file(index), columns=SCHEMA.names)
        table = table.filter(pa.array(keep[index])).replace_schema_metadata(None)
        ids = pa.array(np.arange(first_id, first_id + len(table), dtype=np.int64))
        first_id += len(table)
        yield table.set_column(0, SCHEMA.field("id"), ids).cast(SCHEMA)


def kept_nuclei(journal: Journal, count: int) -> list[np.ndarray]:
    """Return for each shard which of its nuclei ``(n,)`` belong to the result.

    Nuclei that do not leave the core of their shard can meet only such as do. Where two of different shards are the
    same, the one that is its shard's own is kept, then the one with the higher score, then that of the earlier shard.
    """
    reported = _read_reported(journal, count)
    drop = np.zeros(len(reported.shard), dtype=bool)
    pairs = _same_nuclei(journal, reported)
    # The order is total: no two nuclei have the same shard and row.
    order = np.lexsort((reported.row, reported.shard, -reported.score, ~reported.own))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    better, worse = np.where((rank[pairs[0]] < rank[pairs[1]]), pairs, pairs[::-1])
    for pair in np.argsort(
        rank[worse], kind="stable"
    ):  # the better one's fate is settled before the worse one's
        drop[worse[pair]] |= not drop[better[pair]]
    if not count:
        return []
    return [~part for part in np.split(drop, np.cumsum(np.bincount(reported.shard, minlength=count))[:-1])]


def _read_reported(journal: Journal, count: int) -> Reported:
    parts = []
    for index in range(count):
        table = pq.read_table(journal.shard_file(index), columns=[*SHARD_COLUMNS, "score", "bbox"])
        flags = [table[name].to_numpy() for name in (*SHARD_COLUMNS, "score")]
        parts.append((np.full(len(table), index), np.arange(len(table)), *flags, boxes_of(table)))
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Reported(none, none, none > 0, none > 0, none, np.zeros((0, 4)))
    return Reported(*(np.concatenate(column) for column in zip(*parts, strict=True)))  # type: ignore[call-arg]


def _same_nuclei(journal: Journal, reported: Reported) -> np.ndarray:
    """Return the pairs ``(2, k)`` of places in ``reported`` that are the same nucleus."""
    crossing = np.flatnonzero(reported.crossing)
    boxes = shapely.box(*reported.box[crossing].T)
    tree = shapely.STRtree(boxes)
    found = [np.zeros((2, 0), dtype=np.int64)]
    for start in range(0, len(reported.shard), 100_000):
        probes = shapely.box(*reported.box[start : start + 100_000].T)
        one, other = tree.query(probes)
        one, other = one + start, crossing[other]
        # A pair of two crossing nuclei is found twice, and within a shard nuclei are disjoint.
        once = (one < other) | ~reported.crossing[one]
        distinct = once & (reported.shard[one] != reported.shard[other])
        found.append(np.stack([one, other])[:, distinct])
    pairs = np.concatenate(found, axis=1)
    involved = np.unique(pairs)
    outlines = _outlines(journal, reported, involved)
    left, right = (np.searchsorted(involved, side) for side in pairs)
    shared = np.zeros(pairs.shape[1], dtype=bool)
    for start in range(0, len(shared), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        a, b = outlines[left[part]], outlines[right[part]]
        smaller = np.minimum(shapely.area(a), shapely.area(b))
        shared[part] = shapely.area(shapely.intersection(a, b)) > SAME_NUCLEUS * smaller
    return pairs[:, shared]


def _outlines(journal: Journal, reported: Reported, places: np.ndarray) -> np.ndarray:
    """Return the outlines ``(n,)`` of some nuclei, reading one shard after the other."""
    result = np.empty(len(places), dtype=object)
    shards = reported.shard[places]
    for index in np.unique(shards):
        here = np.flatnonzero(shards == index)
        column = pq.read_table(journal.shard_file(int(index)), columns=["geometry"])["geometry"]
        rows = pa.array(reported.row[places[here]])
        result[here] = shapely.from_wkb(column.take(rows).to_numpy(zero_copy_only=False))
    return result
