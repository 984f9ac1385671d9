"""Write the results of a slide: tables and outlines streamed from the shards, pictures and statistics."""

import gzip
import hashlib
import itertools
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import shapely

from nucsam_monai.io import write_png
from nucsam_monai.io.overlay import colours_of
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_path
from nucsam_monai.wsi.grid import WorkingGrid
from nucsam_monai.wsi.labels import LabelImage, replaced_directory, write_spatialdata
from nucsam_monai.wsi.nuclei_table import SCHEMA, geo_metadata

STREAMED = {"parquet": "nuclei.parquet", "geojson": "nuclei.geojson.gz", "csv": "nuclei.csv.gz"}
"""The files that are written by default, by their key."""

OUTPUTS = {**STREAMED, "labels": "labels.zarr", "spatialdata": "slide.zarr"}
"""All that can be written, by its key."""

_ID_NAMESPACE = uuid.UUID("6f0d2f6e-5f0c-5e0a-9c57-3d1f0b8b6a51")
_MEASUREMENTS = ("id", "area_um2", "perimeter_um", "eccentricity", "score")
_NO_TABLE = ("bbox", "geometry")
_DENSITY_UM = 100.0
_SCALE_BARS_UM = (5000, 2000, 1000, 500, 200, 100, 50, 20)
_FONT = (cv2.FONT_HERSHEY_SIMPLEX, 0.5)


class Summary:
    """Count the nuclei of a slide, shard by shard.

    Args:
        thumbnail_shape: height and width of the slide's thumbnail.
        um_per_pixel: micrometres per pixel of the thumbnail.
    """

    def __init__(self, thumbnail_shape: tuple[int, int], um_per_pixel: float) -> None:
        self.counts = np.zeros(thumbnail_shape, dtype=np.int32)
        self.um_per_pixel = um_per_pixel
        self.nuclei = self.cut = 0
        self.classes: dict[str, int] = {}
        self._measures: dict[str, list[np.ndarray]] = {"area_um2": [], "score": []}

    def add(self, table: pa.Table) -> None:
        """Count the nuclei of a shard."""
        self.nuclei += len(table)
        self.cut += int(np.count_nonzero(table["cut"]))
        for entry in table["class_name"].combine_chunks().value_counts().to_pylist():
            self.classes[entry["values"]] = self.classes.get(entry["values"], 0) + entry["counts"]
        for name, parts in self._measures.items():
            parts.append(table[name].to_numpy())
        places = [
            (table[f"centroid_{axis}_um"].to_numpy() / self.um_per_pixel).astype(int).clip(0, size - 1)
            for axis, size in zip("yx", self.counts.shape, strict=True)
        ]
        np.add.at(self.counts, tuple(places), 1)

    def statistics(self, tissue_mm2: float) -> dict[str, Any]:
        """Return the numbers of ``statistics.json`` that follow from the nuclei."""
        quartiles = {}
        for name, parts in self._measures.items():
            values = np.concatenate(parts) if parts else np.zeros(0)
            quartiles[name] = np.quantile(values, (0.25, 0.5, 0.75)).round(4) if len(values) else None
        return {
            "nuclei": self.nuclei,
            "tissue_mm2": round(tissue_mm2, 6),
            "nuclei_per_mm2": round(self.nuclei / tissue_mm2, 2) if tissue_mm2 else None,
            "classes": {
                name: {
                    "nuclei": count,
                    "share": count / self.nuclei,
                    "wilson_95": _wilson(count, self.nuclei),
                }
                for name, count in sorted(self.classes.items())
            },
            "quartiles": quartiles,
            "cut": self.cut,
        }


def write_nuclei(
    folder: Path,
    shards: Iterable[pa.Table],
    kinds: Sequence[str],
    *,
    name: str,
    facts: Mapping[str, Any],
    grid: WorkingGrid,
    summary: Summary,
) -> list[str]:
    """Write the nuclei, each output complete or absent; return the names of the files.

    Args:
        folder: folder of the slide.
        shards: nuclei with their ids, one table per shard.
        kinds: keys of :data:`OUTPUTS`.
        name: seed of the ids of QuPath's objects.
        facts: noted in the Parquet file: micrometres per pixel, scale and origin of the GeoJSON.
        grid: pixels of the label image.
        summary: counts them.
    """
    if "spatialdata" in kinds:
        kinds = [*kinds, "parquet"]  # whose file is part of it
    with ExitStack() as files:
        paths = {
            kind: files.enter_context(atomic_path(folder / file))
            for kind, file in STREAMED.items()
            if kind in kinds
        }
        writers = []
        if "labels" in kinds:
            labels = LabelImage(files.enter_context(replaced_directory(folder / OUTPUTS["labels"])), grid)
            writers.append(labels.paint)
        if "parquet" in kinds:
            metadata = {**geo_metadata(), b"nucsam": json.dumps(dict(facts)).encode()}
            schema = SCHEMA.with_metadata(metadata)
            parquet = files.enter_context(pq.ParquetWriter(paths["parquet"], schema, compression="zstd"))
            writers.append(lambda table: parquet.write_table(table.replace_schema_metadata(metadata)))
        if "csv" in kinds:
            text = files.enter_context(_gzip(paths["csv"]))
            columns = [column for column in SCHEMA.names if column not in _NO_TABLE]
            text.write((",".join(columns) + "\n").encode())
            options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
            writers.append(lambda table: pyarrow.csv.write_csv(_plain(table.select(columns)), text, options))
        if "geojson" in kinds:
            geojson = files.enter_context(
                _feature_collection(paths["geojson"], name, facts["geojson_origin"])
            )
            writers.append(geojson)
        for table in shards:
            summary.add(table)
            for write in writers:
                write(table)
        if "labels" in kinds:
            labels.close()
    if "spatialdata" in kinds:
        write_spatialdata(folder, facts["mpp"], grid, labels="labels" in kinds)
    written = [folder / file for kind, file in OUTPUTS.items() if kind in kinds]
    return [str(file.relative_to(folder)) for path in written for file in _files_of(path)]


def check_outputs(kinds: Sequence[str]) -> None:
    """Check before the work begins that all outputs can be written.

    Raises:
        ConfigurationError: an output is unknown, or a package is not installed.
    """
    if unknown := sorted(set(kinds) - set(OUTPUTS)):
        raise ConfigurationError(f"outputs '{unknown[0]}': expected some of {', '.join(OUTPUTS)}.")
    if "labels" in kinds and find_spec("zarr") is None:
        raise ConfigurationError(
            "outputs 'labels': zarr is missing. With Python 3.11 or later: pip install 'nucsam-monai[slides]'."
        )


def _files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


@contextmanager
def _feature_collection(path: Path, name: str, origin: Sequence[float]) -> Iterator[Any]:
    """Give a function that appends a table's nuclei to a gzipped GeoJSON file for QuPath."""
    with _gzip(path) as file:
        file.write(b'{"type":"FeatureCollection","features":[')
        state = {"separator": b"\n"}
        classes = _Classifications()

        def write(table: pa.Table) -> None:
            outlines = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
            if any(origin):
                outlines = shapely.transform(outlines, lambda corners: corners - np.asarray(origin))
            texts = _geojson_of(outlines)
            columns = [table[column].to_pylist() for column in (*_MEASUREMENTS, "class_id", "class_name")]
            # Formatted by hand: a million objects pass here, and json.dumps takes half of the merge's time.
            lines = [
                f'{{"type":"Feature","id":"{_identity(name, number)}","geometry":{text},"properties":{{'
                f'"objectType":"detection","classification":{classes[class_id, class_name]},"measurements":{{'
                f'"id":{number},"area_um2":{area:.4f},"perimeter_um":{perimeter:.4f},"eccentricity":{eccentricity:.4f},'
                f'"score":{score:.4f}}}}}}}'
                for text, number, area, perimeter, eccentricity, score, class_id, class_name in zip(
                    texts, *columns, strict=True
                )
            ]
            if lines:
                file.write(state["separator"] + ",\n".join(lines).encode())
                state["separator"] = b",\n"

        yield write
        file.write(b"\n]}\n")


def _geojson_of(outlines: np.ndarray) -> list[str]:
    """Return each outline as GeoJSON; simple ones are formatted here, twenty times as fast as by shapely."""
    corners, owners = shapely.get_coordinates(outlines, return_index=True)
    ends = np.searchsorted(owners, np.arange(len(outlines) + 1))
    simple = (shapely.get_type_id(outlines) == shapely.GeometryType.POLYGON) & (
        shapely.get_num_interior_rings(outlines) == 0
    )
    simple &= (corners >= 0).all()  # in front of the slide's corner there is nothing as a rule
    return [
        f'{{"type":"Polygon","coordinates":[[{text}]]}}' if is_simple else shapely.to_geojson(outline)
        for outline, text, is_simple in zip(
            outlines, _texts_of_corners(corners, ends), simple.tolist(), strict=True
        )
    ]


def _texts_of_corners(corners: np.ndarray, ends: np.ndarray) -> list[str]:
    """Return the corners from one end to the next as JSON, whole or to a hundredth of a pixel, all digits at once."""
    decimals = 0 if (corners == np.round(corners)).all() else 2
    numbers = np.rint(corners * 10**decimals).astype(np.int32)[..., None]
    count = max(len(str(numbers.max(initial=0))), decimals + 1)
    powers = 10 ** np.arange(count, dtype=np.int32)[::-1]
    digits = np.where((numbers >= powers) | (powers <= 10**decimals), numbers // powers % 10 + ord("0"), 0)
    if decimals:
        digits = np.insert(digits, count - decimals, ord("."), axis=2)
    text = np.zeros((len(corners), 2 * digits.shape[2] + 4), dtype=np.uint8)  # 0 is nothing
    middle = digits.shape[2] + 1
    text[:, 1:middle], text[:, middle + 1 : -2] = digits[:, 0], digits[:, 1]
    text[:, [0, middle, -2, -1]] = np.frombuffer(b"[,],", dtype=np.uint8)
    bounds = np.concatenate([[0], np.cumsum(np.count_nonzero(text, axis=1))])[ends].tolist()
    joined = text[text > 0].tobytes().decode("ascii")
    return [joined[first : end - 1] for first, end in itertools.pairwise(bounds)]


class _Classifications(dict[tuple[int, str], str]):
    """QuPath's form of each class, made once."""

    def __missing__(self, key: tuple[int, str]) -> str:
        number, name = key
        colour = colours_of(np.array([number]))[0].tolist()
        self[key] = json.dumps({"name": name, "color": colour}, separators=(",", ":"))
        return self[key]


def _identity(name: str, number: int) -> str:
    """Return the UUID (version 5) of a nucleus, as ``uuid.uuid5`` gives it, in a third of its time."""
    digest = hashlib.sha1(
        _ID_NAMESPACE.bytes + f"{name}/{number}".encode(), usedforsecurity=False
    ).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


@contextmanager
def _gzip(path: Path) -> Iterator[IO[bytes]]:
    """Open a gzip file without name and time in it, so that equal content gives equal bytes."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
        yield file  # type: ignore[misc]


def _plain(table: pa.Table) -> pa.Table:
    at = table.schema.get_field_index("class_name")
    return table.set_column(at, "class_name", table["class_name"].cast(pa.string()))


def write_pictures(folder: Path, thumbnail: np.ndarray, summary: Summary) -> list[str]:
    """Write the thumbnail with the nuclei's density on it, and the density alone, both with their scales."""
    # A Gaussian of this width weighs nuclei about as a disc of 100 um across does, without its hard rim.
    width_px = _DENSITY_UM / 4 / summary.um_per_pixel
    counts = summary.counts.astype(np.float32)
    per_mm2 = cv2.GaussianBlur(counts, (0, 0), max(width_px, 0.5), borderType=cv2.BORDER_CONSTANT)
    per_mm2 /= (summary.um_per_pixel / 1000) ** 2
    seen = per_mm2[per_mm2 > 1]
    top = _rounded_up(float(np.quantile(seen, 0.99))) if seen.size else 1.0
    levels = (np.clip(per_mm2 / top, 0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1]
    weight = (0.6 * levels / 255.0)[..., None]
    overlay = (thumbnail * (1 - weight) + colours * weight).astype(np.uint8)
    for name, picture in (("overlay.png", overlay), ("density.png", colours)):
        write_png(
            folder / name, _with_scales(picture, summary.um_per_pixel, f"{summary.nuclei:,} nuclei", top)
        )
    return ["overlay.png", "density.png"]


def _with_scales(picture: np.ndarray, um_per_pixel: float, words: str, top: float) -> np.ndarray:
    """Return a picture at least 640 pixels wide above a strip with a scale bar, a few words and the colours."""
    zoom = max(1, -(-640 // picture.shape[1]))
    picture = np.repeat(np.repeat(picture, zoom, axis=0), zoom, axis=1)
    width, px_per_um = picture.shape[1], zoom / um_per_pixel
    um = next((um for um in _SCALE_BARS_UM if um * px_per_um <= width / 4), _SCALE_BARS_UM[-1])
    strip = np.full((52, width, 3), 255, dtype=np.uint8)
    strip[12:18, 12 : 12 + round(um * px_per_um)] = 0
    bar = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_VIRIDIS)[..., ::-1]
    left, right = width - 252, width - 12
    strip[9:21, left:right] = cv2.resize(np.ascontiguousarray(bar), (right - left, 12))
    length = f"{um / 1000:g} mm" if um >= 1000 else f"{um} um"
    highest = f"{top:,.0f} nuclei/mm2"
    ends = (length, 12), (words, width // 2 - 110), ("0", left), (highest, right - _width_of(highest))
    for text, x in ends:
        cv2.putText(strip, text, (x, 41), *_FONT, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([picture, strip])


def _width_of(text: str) -> int:
    return int(cv2.getTextSize(text, *_FONT, 1)[0][0])


def _rounded_up(value: float) -> float:
    """Return the next number with two digits that is not below ``value``."""
    step = 10.0 ** max(0, np.floor(np.log10(max(value, 1))) - 1)
    return float(np.ceil(value / step) * step)


def _wilson(count: int, total: int) -> list[float]:
    """Return the 95 % interval of a share by Wilson's formula."""
    z2 = 1.96**2
    centre = (count + z2 / 2) / (total + z2)
    half = 1.96 / (total + z2) * np.sqrt(count * (total - count) / total + z2 / 4)
    return [round(max(0.0, centre - half), 6), round(min(1.0, centre + half), 6)]
