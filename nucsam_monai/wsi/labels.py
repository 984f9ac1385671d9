"""Write the nuclei of a slide as a label image of OME-Zarr 0.5, and label image and outlines as a SpatialData store."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from nucsam_monai.io import write_json
from nucsam_monai.utils.files import atomic_directory
from nucsam_monai.wsi.grid import WorkingGrid
from nucsam_monai.wsi.nuclei_table import boxes_of

_CHUNK_PX, _FILE_PX = 512, 2048
_COARSEST_PX = 2048
"""Levels are halved until the longer side has no more pixels than this."""


class LabelImage:
    """Write a pyramid of label images, one table of nuclei at a time, with only a strip in memory.

    Args:
        folder: folder of the image.
        grid: pixels that the network saw; outlines are lossless on them.
    """

    def __init__(self, folder: Path, grid: WorkingGrid) -> None:
        self.scale = grid.scale
        steps = [1]
        while max(grid.height, grid.width) / steps[-1] > _COARSEST_PX:
            steps.append(2 * steps[-1])
        self.levels = [
            _array(folder / str(n), (-(-grid.height // step), -(-grid.width // step)))
            for n, step in enumerate(steps)
        ]
        axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
        datasets = [
            {
                "path": str(n),
                "coordinateTransformations": [{"type": "scale", "scale": [grid.mpp * step] * 2}],
            }
            for n, step in enumerate(steps)
        ]
        scales = [{"name": "nuclei", "axes": axes, "datasets": datasets}]
        _group(folder, {"ome": {"version": "0.5", "multiscales": scales, "image-label": {}}})

    def paint(self, table: pa.Table) -> None:
        """Paint nuclei, which share no pixel with one another; a pixel that is taken already is left as it is."""
        for top, left, strip in painted(table, self.scale):
            place = (slice(top, top + strip.shape[0]), slice(left, left + strip.shape[1]))
            before = self.levels[0][place]
            self.levels[0][place] = np.where(before, before, strip[: len(before), : before.shape[1]])

    def close(self) -> None:
        """Fill the coarser levels: every second pixel of the next finer one."""
        for finer, level in zip(self.levels, self.levels[1:], strict=False):
            for top in range(0, level.shape[0], _FILE_PX):
                for left in range(0, level.shape[1], _FILE_PX):
                    place = (slice(top, top + _FILE_PX), slice(left, left + _FILE_PX))
                    level[place] = finer[tuple(slice(2 * one.start, 2 * one.stop, 2) for one in place)]


def painted(table: pa.Table, scale: float) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield the nuclei of a table as strips of a label map.

    Args:
        table: table of the nuclei, whose outlines follow pixel edges.
        scale: pixels of level 0 per pixel of the map.

    Yields:
        First row and first column of the strip, neither of them negative, and the strip ``(rows, columns)`` uint32,
        which may reach beyond the slide.
    """
    if not len(table):
        return
    boxes = np.rint(boxes_of(table) / scale).astype(np.int64)
    left, right = max(int(boxes[:, 0].min()), 0), int(boxes[:, 2].max())
    first_row, end_row = max(int(boxes[:, 1].min()), 0), int(boxes[:, 3].max())
    columns, rows, ids = _upright_sides(table, scale)
    for top in range(first_row // _FILE_PX * _FILE_PX, end_row, _FILE_PX):
        here = (rows >= top) & (rows < top + _FILE_PX)
        strip = np.zeros((_FILE_PX, right - left + 1), dtype=np.uint32)
        # A nucleus begins and ends at each of its upright sides, so that a row is its sides added up bit by bit.
        np.bitwise_xor.at(strip, (rows[here] - top, np.maximum(columns[here] - left, 0)), ids[here])
        np.bitwise_xor.accumulate(strip, axis=1, out=strip)
        yield top, left, strip[:, :-1]


def _array(folder: Path, shape: tuple[int, int]) -> Any:
    import zarr

    return zarr.create_array(
        str(folder),
        shape=shape,
        dtype="uint32",
        chunks=(_CHUNK_PX, _CHUNK_PX),
        shards=(_FILE_PX, _FILE_PX),
        compressors=zarr.codecs.ZstdCodec(level=1),
        fill_value=0,
        dimension_names=("y", "x"),
    )


def _upright_sides(table: pa.Table, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return column, row and nucleus of every upright side of a pixel ``(n,)`` that the outlines run along."""
    outlines = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    parts, nucleus = shapely.get_parts(outlines, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    corners, ring = shapely.get_coordinates(rings, return_index=True)
    x, y = np.rint(corners / scale).astype(np.int64).T
    upright = np.flatnonzero((ring[1:] == ring[:-1]) & (x[1:] == x[:-1]))
    first, end = np.sort([y[upright], y[upright + 1]], axis=0)
    lengths = end - first
    rows = np.arange(lengths.sum()) + np.repeat(first - np.cumsum(lengths) + lengths, lengths)
    ids = table["id"].to_numpy().astype(np.uint32)[nucleus[part[ring[upright]]]]
    return np.repeat(x[upright], lengths), rows, np.repeat(ids, lengths)


def write_spatialdata(folder: Path, mpp: float, grid: WorkingGrid, *, labels: bool) -> None:
    """Write ``slide.zarr``, which the package ``spatialdata`` opens; its files are those written before.

    Args:
        folder: folder of the slide, with ``nuclei.parquet``.
        mpp: micrometres per pixel at level 0.
        grid: grid of ``labels.zarr``.
        labels: whether ``labels.zarr`` is part of it.
    """
    with replaced_directory(folder / "slide.zarr") as store:
        _group(store, {"spatialdata_attrs": {"version": "0.2", "spatialdata_software_version": "0.7.3"}})
        _group(store / "shapes", {})
        shapes = {"encoding-type": "ngff:shapes", "axes": ["x", "y"], "spatialdata_attrs": {"version": "0.3"}}
        _group(store / "shapes" / "nuclei", {**shapes, "coordinateTransformations": [_to_um(mpp, "xy")]})
        _same_file(folder / "nuclei.parquet", store / "shapes" / "nuclei" / "shapes.parquet")
        if labels:
            _group(store / "labels", {"ome": {"labels": ["nuclei_labels"]}})
            _link_labels(folder / "labels.zarr", store / "labels" / "nuclei_labels", grid)


def _link_labels(source: Path, target: Path, grid: WorkingGrid) -> None:
    """Give a label image SpatialData's own version of its metadata."""
    levels = sorted((one for one in source.iterdir() if one.is_dir()), key=lambda one: int(one.name))
    for file in (file for level in levels for file in level.rglob("*") if file.is_file()):
        _same_file(file, target / file.relative_to(source))
    datasets = [
        {
            "path": level.name,
            "coordinateTransformations": [{"type": "scale", "scale": [2.0 ** int(level.name)] * 2}],
        }
        for level in levels
    ]
    scales = {
        "name": target.name,
        "axes": [{"name": axis, "type": "space"} for axis in "yx"],
        "datasets": datasets,
        "coordinateTransformations": [_to_um(grid.mpp, "yx")],
    }
    ome = {"version": "0.5-dev-spatialdata", "multiscales": [scales]}
    _group(target, {"ome": ome, "spatialdata_attrs": {"version": "0.3"}})


def _to_um(mpp: float, axes: Sequence[str]) -> dict[str, Any]:
    """Return SpatialData's transformation of pixels into the coordinate system ``global``, in micrometres."""

    def system(name: str, unit: str) -> dict[str, Any]:
        return {"name": name, "axes": [{"name": axis, "type": "space", "unit": unit} for axis in axes]}

    ends = {"input": system("".join(axes), "unit"), "output": system("global", "micrometer")}
    return {"type": "scale", "scale": [mpp, mpp], **ends}


def _group(folder: Path, attributes: Mapping[str, Any]) -> None:
    write_json(folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)})


def _same_file(source: Path, target: Path) -> None:
    """Make a file appear in a second place; copy it where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def replaced_directory(path: Path) -> Any:
    """Give a temporary folder that takes the place of ``path``, which is removed, when the block ends."""
    shutil.rmtree(path, ignore_errors=True)
    return atomic_directory(path)
