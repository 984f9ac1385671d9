"""Measure the nuclei of a slide on a label map, and store them as Arrow tables with lossless outlines."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import shapely

from nucsam_monai.utils.label_outlines import label_outlines
from nucsam_monai.utils.label_runs import label_runs
from nucsam_monai.utils.prediction import NucleiPrediction

_CROFTON = np.pi / 4
"""Length of a smooth outline per length of its staircase of pixel sides, on average over all directions."""

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("class_id", pa.int16()),
        ("class_name", pa.dictionary(pa.int8(), pa.string())),
        ("score", pa.float32()),
        ("centroid_x_um", pa.float64()),
        ("centroid_y_um", pa.float64()),
        ("area_um2", pa.float32()),
        ("area_px", pa.int64()),
        ("perimeter_um", pa.float32()),
        ("major_um", pa.float32()),
        ("minor_um", pa.float32()),
        ("eccentricity", pa.float32()),
        ("orientation", pa.float32()),
        ("mean_r", pa.float32()),
        ("mean_g", pa.float32()),
        ("mean_b", pa.float32()),
        ("shard", pa.int32()),
        ("cut", pa.bool_()),
        ("bbox", pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])),
        ("geometry", pa.binary()),
    ]
)
"""Columns of ``nuclei.parquet``. Lengths of ``*_um`` are micrometres from the slide's corner, ``area_px`` pixels that
the network saw; ``bbox`` and ``geometry`` (WKB, along pixel corners) are pixels of level 0."""


class Measured(NamedTuple):
    """Hold the measurements of each nucleus; arrays ``(n,)`` in the order of the ids.

    Attributes:
        area: pixels.
        sum_x: sum of the columns of its pixels, in pixels of the grid.
        sum_y: sum of the rows.
        axes: ``(n, 2)`` major and minor axis of the ellipse with the same second moments, in pixels.
        orientation: angle of the major axis against x in radians, -pi/2 to pi/2, y pointing down.
        colour: ``(n, 3)`` mean RGB.
    """

    area: np.ndarray
    sum_x: np.ndarray
    sum_y: np.ndarray
    axes: np.ndarray
    orientation: np.ndarray
    colour: np.ndarray


def measure(instances: np.ndarray, ids: np.ndarray, pixels: np.ndarray, x: int, y: int) -> Measured:
    """Measure the nuclei of a label map.

    Args:
        instances: ``(H, W)`` label map.
        ids: ``(n,)`` ascending, of its nuclei.
        pixels: ``(H, W, 3)`` uint8.
        x: column of the map's first pixel on the grid.
        y: row of it.
    """
    count, runs = len(ids), label_runs(instances)
    labels = instances.ravel()[runs.starts]
    ranks = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.int64)
    ranks[ids] = np.arange(count)
    drawn = labels > 0
    nucleus, length = ranks[labels[drawn]], runs.lengths[drawn]
    row, column = np.divmod(runs.starts[drawn], max(runs.width, 1))

    def sums(of_run: np.ndarray) -> np.ndarray:
        return np.bincount(nucleus, weights=of_run, minlength=count)  # float64, exact for whole numbers

    area = sums(length).astype(np.int64)
    filled = np.maximum(area, 1)
    sum_x = sums(length * column + length * (length - 1) // 2).astype(np.int64)
    sum_y = sums(length * row).astype(np.int64)
    # From a pixel near the centre the squares are small whole numbers, whose sums are exact as well.
    near_x, near_y = sum_x // filled, sum_y // filled
    column, row = column - near_x[nucleus], row - near_y[nucleus]
    run_x = length * column + length * (length - 1) // 2
    run_xx = length * column**2 + length * (length - 1) * (6 * column + 2 * length - 1) // 6
    dx, dy = sum_x / filled - near_x, sum_y / filled - near_y
    # A pixel is a square, whose own second moment is 1/12.
    xx = sums(run_xx) / filled - dx**2 + 1 / 12
    yy = sums(length * row**2) / filled - dy**2 + 1 / 12
    xy = sums(run_x * row) / filled - dx * dy
    spread = np.hypot(xx - yy, 2 * xy)
    axes = np.sqrt(8 * np.clip(np.stack([xx + yy + spread, xx + yy - spread], axis=1), 0, None))
    orientation = 0.5 * np.arctan2(2 * xy, xx - yy)
    inside = pixels.reshape(-1, 3)[np.flatnonzero(instances)]
    colours = np.add.reduceat(inside, np.cumsum(length) - length, axis=0, dtype=np.int64) if count else inside
    colour = np.stack([sums(colours[:, channel]) / filled for channel in range(3)], axis=1)
    return Measured(area, sum_x + x * area, sum_y + y * area, axes, orientation, colour)


def outlines(prediction: NucleiPrediction, x: int, y: int, scale: float) -> np.ndarray:
    """Return the outline of each nucleus as ``(n,)`` shapely geometries in pixels of level 0.

    Args:
        prediction: the nuclei.
        x: column of the prediction's first pixel on the grid.
        y: row of it.
        scale: pixels of level 0 per pixel of the grid.
    """
    found = label_outlines(prediction.instances, prediction.table)
    if not len(found.polygon_of_ring):
        return np.zeros(0, dtype=object)
    corners = (found.corners + np.array([x, y], dtype=np.float64)) * scale
    lines = shapely.linearrings(
        corners, indices=np.repeat(np.arange(len(found.polygon_of_ring)), np.diff(found.ring_ends))
    )
    polygons = shapely.polygons(
        lines, indices=found.polygon_of_ring
    )  # the first ring of each is the outer one
    nuclei = found.nucleus_of_polygon
    geometries = np.zeros(nuclei[-1] + 1, dtype=object)
    geometries[nuclei] = polygons
    for several in np.flatnonzero(np.bincount(nuclei) > 1).tolist():
        geometries[several] = shapely.multipolygons(polygons[nuclei == several])
    return geometries


def nuclei_rows(
    prediction: NucleiPrediction,
    measured: Measured,
    *,
    origin: tuple[int, int],
    scale: float,
    mpp: float,
    shard: int = 0,
    cut: np.ndarray | None = None,
) -> pa.Table:
    """Return the nuclei as a table of :data:`SCHEMA`, ordered as in the prediction; ids are 0 until the merge.

    Args:
        prediction: the nuclei.
        measured: output of :func:`measure`.
        origin: column and row of the prediction's first pixel on the grid.
        scale: pixels of level 0 per pixel of the grid.
        mpp: micrometres per pixel of the grid.
        shard: shard that found the nuclei.
        cut: ``(n,)`` bool, nuclei that reach beyond what the shard sees.
    """
    count = len(prediction)
    geometries = outlines(prediction, *origin, scale)
    major, minor = measured.axes.T
    area = np.maximum(measured.area, 1)
    ratio = np.clip(minor / np.where(major > 0, major, 1), 0, 1)
    table = prediction.table
    boxes = np.stack([table[f"box_{axis}_{end}_px"] for end in ("min", "max") for axis in "xy"], axis=1)
    boxes = (boxes + np.tile(origin, 2)) * scale
    um_per_level0 = mpp / scale
    names = pa.array(prediction.class_names, pa.string())
    columns = {
        "id": np.zeros(count, np.int64),
        "class_id": table["class_id"],
        "class_name": pa.DictionaryArray.from_arrays(pa.array(table["class_id"], pa.int8()), names),
        "score": table["score"],
        "centroid_x_um": (measured.sum_x / area + 0.5) * mpp,
        "centroid_y_um": (measured.sum_y / area + 0.5) * mpp,
        "area_um2": measured.area * mpp**2,
        "area_px": measured.area,
        "perimeter_um": shapely.length(geometries) * _CROFTON * um_per_level0,
        "major_um": major * mpp,
        "minor_um": minor * mpp,
        "eccentricity": np.sqrt(1 - ratio**2),
        "orientation": measured.orientation,
        **{f"mean_{name}": measured.colour[:, n] for n, name in enumerate("rgb")},
        "shard": np.full(count, shard, np.int32),
        "cut": np.zeros(count, bool) if cut is None else cut,
        "bbox": bbox_column(boxes),
        "geometry": pa.array(shapely.to_wkb(geometries) if count else [], pa.binary()),
    }
    arrays = [
        columns[field.name]
        if isinstance(columns[field.name], pa.Array)
        else pa.array(np.asarray(columns[field.name]).astype(field.type.to_pandas_dtype()), field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def bbox_column(boxes: np.ndarray) -> pa.StructArray:
    """Return boxes ``(n, 4)`` (x_min, y_min, x_max, y_max) as a column of GeoParquet."""
    return pa.StructArray.from_arrays(
        [pa.array(np.ascontiguousarray(boxes[:, n]), pa.float64()) for n in range(4)],
        names=["xmin", "ymin", "xmax", "ymax"],
    )


def boxes_of(table: pa.Table) -> np.ndarray:
    """Return the boxes ``(n, 4)`` (x_min, y_min, x_max, y_max) of a table, in pixels of level 0."""
    column = table["bbox"].combine_chunks()
    return np.stack([column.field(name).to_numpy() for name in ("xmin", "ymin", "xmax", "ymax")], axis=1)


def geo_metadata(types: Sequence[str] = ("Polygon", "MultiPolygon")) -> dict[bytes, bytes]:
    """Return the metadata that makes a table GeoParquet 1.1; the coordinates are pixels, so there is no CRS."""
    covering = {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}
    column = {"encoding": "WKB", "geometry_types": list(types), "crs": None, "covering": {"bbox": covering}}
    document = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return {b"geo": json.dumps(document, separators=(",", ":")).encode()}
