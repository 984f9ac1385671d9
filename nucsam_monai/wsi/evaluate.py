"""Compare the nuclei of a slide with the truth without painting either."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import shapely


class Overlaps(NamedTuple):
    """What instance metrics need, in the order of :class:`nucsam_monai.metrics.ContingencyTable`."""

    truth_ids: np.ndarray
    found_ids: np.ndarray
    truth_areas: np.ndarray
    found_areas: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    areas: np.ndarray


def overlaps(truth: Path, found: Path) -> Overlaps:
    """Return areas and overlaps of the outlines in two Parquet files, in whole pixels of level 0."""
    (truth_ids, first), (found_ids, second) = (_outlines(path) for path in (truth, found))
    outlines = (first, second)
    rows, columns = shapely.STRtree(outlines[1]).query(outlines[0], predicate="intersects")
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]
    shared = np.round(shapely.area(shapely.intersection(outlines[0][rows], outlines[1][columns])))
    real = shared > 0
    truth_areas, found_areas = (np.round(shapely.area(one)).astype(np.int64) for one in outlines)
    places = (rows[real], columns[real], shared[real].astype(np.int64))
    return Overlaps(truth_ids, found_ids, truth_areas, found_areas, *places)


def _outlines(path: Path) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(path, columns=["id", "geometry"])
    return table["id"].to_numpy(), shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
