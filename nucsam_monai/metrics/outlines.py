"""Compare nuclei given as outlines, such as those of a slide, without rasterising whole images."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.metrics.pair import ContingencyTable


def table_of_outlines(y: Path, y_pred: Path) -> ContingencyTable:
    """Return areas and overlaps of the nuclei in two GeoParquet files, in whole pixels; needs the extra ``slides``.

    Args:
        y: the ground truth, with columns ``id`` and ``geometry``.
        y_pred: the prediction, in the same pixels.
    """
    import shapely

    (y_ids, outlines), (y_pred_ids, predicted) = _outlines(y), _outlines(y_pred)
    rows, columns = shapely.STRtree(predicted).query(outlines, predicate="intersects")
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]
    shared = np.round(shapely.area(shapely.intersection(outlines[rows], predicted[columns])))
    real = shared > 0
    areas, predicted_areas = (np.round(shapely.area(one)).astype(np.int64) for one in (outlines, predicted))
    places = (rows[real], columns[real], shared[real].astype(np.int64))
    return ContingencyTable(y_ids, y_pred_ids, areas, predicted_areas, *places)


def _outlines(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    import pyarrow.parquet as pq
    import shapely

    table = pq.read_table(path, columns=["id", "geometry"])
    return table["id"].to_numpy(), shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
