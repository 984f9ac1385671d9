"""Write the results of an image, and tables as CSV and JSON: numbers in full precision, NaN as an empty value."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from nucsam_monai.io.geojson import ObjectType, write_geojson
from nucsam_monai.io.label_maps import write_label_image
from nucsam_monai.io.overlay import OVERLAY_PX, check_same_plane, draw_prediction, write_png
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_files, atomic_path
from nucsam_monai.utils.label_runs import label_runs
from nucsam_monai.utils.prediction import NUCLEUS_DTYPE, NucleiPrediction

NUCLEI_COLUMNS = (*(NUCLEUS_DTYPE.names or ()), "class_name")
"""Columns of a table of nuclei; units are in the names."""

TABLES = ("per_image", "summary", "per_tissue", "per_class", "comparison")
"""Entries of an evaluation that are tables; each becomes a CSV file of that name."""


def write_prediction(
    prediction: NucleiPrediction,
    image: np.ndarray,
    output_dir: Path | str,
    stem: str,
    *,
    object_type: ObjectType = "detection",
    overlay_px: int = OVERLAY_PX,
) -> dict[str, Path]:
    """Write a label image, GeoJSON, a table and an overlay of one image.

    The input is checked before the first file is written, and either all files are written or none. Outlines in the
    overlay are coloured by class if there are several classes, else by nucleus.

    Args:
        prediction: nuclei of the image; may be empty.
        image: ``(H, W, 3)`` uint8 RGB, the image that was segmented.
        output_dir: folder for the files; created if missing.
        stem: start of the file names, see :func:`nucsam_monai.io.images.output_stems`.
        object_type: QuPath object type in the GeoJSON file.
        overlay_px: longest side of the overlay in pixels; 0 writes no overlay.

    Returns:
        The paths of the files: ``instances`` (``<stem>_instances.tif``), ``geojson`` (``<stem>.geojson``), ``table``
        (``<stem>_nuclei.csv``) and ``overlay`` (``<stem>_overlay.png``).

    Raises:
        ConfigurationError: image, label map and table do not fit each other, ``stem`` is not a file name, or
            ``overlay_px`` is negative.
        OutputError: a file cannot be written.
    """
    _check(prediction, image, stem)
    names = prediction_files(stem)
    overlay = draw_prediction(prediction, image, overlay_px) if overlay_px else None
    if overlay is None:
        del names["overlay"]
    # Compression leaves the interpreter free, so the pictures are written while the texts are.
    with atomic_files(output_dir, names) as paths, ThreadPoolExecutor(max_workers=2) as pool:
        pictures = [pool.submit(write_label_image, paths["instances"], prediction.instances)]
        if overlay is not None:
            pictures.append(pool.submit(write_png, paths["overlay"], overlay))
        write_geojson(paths["geojson"], prediction, name=stem, object_type=object_type)
        write_table(paths["table"], nuclei_rows(prediction), NUCLEI_COLUMNS)
        for picture in pictures:
            picture.result()
    return {kind: Path(output_dir) / name for kind, name in names.items()}


def prediction_files(stem: str) -> dict[str, str]:
    """Return the file names of :func:`write_prediction` under ``instances``, ``geojson``, ``table`` and ``overlay``."""
    return {
        "instances": f"{stem}_instances.tif",
        "geojson": f"{stem}.geojson",
        "table": f"{stem}_nuclei.csv",
        "overlay": f"{stem}_overlay.png",
    }


def _check(prediction: NucleiPrediction, image: np.ndarray, stem: str) -> None:
    """Raise for input that would fail only after some files are written."""
    if stem in ("", ".", "..") or Path(stem).name != stem or "\\" in stem or "\0" in stem:
        raise ConfigurationError(f"stem: expected a plain file name without folders, found {stem!r}.")
    check_same_plane(image, prediction.instances)
    table, class_count = prediction.table, len(prediction.class_names)
    ids = np.unique(prediction.instances.ravel()[label_runs(prediction.instances).starts])
    if not np.array_equal(ids[ids != 0], table["id"]) or (len(ids) and ids[0] < 0):
        raise ConfigurationError(
            f"{stem}: the table of nuclei does not list the positive ids of the label map."
        )
    if not np.isfinite(table["score"]).all():
        raise ConfigurationError(f"{stem}: scores contain NaN or infinities.")
    unnamed = np.setdiff1d(table["class_id"], np.arange(class_count))
    if len(unnamed):
        raise ConfigurationError(
            f"{stem}: class ids {unnamed[:5].tolist()} have no name; there are {class_count} class names."
        )


def write_table(
    path: Path | str, rows: Iterable[Mapping[str, object]], columns: Sequence[str] | None = None
) -> None:
    """Write rows as CSV (UTF-8, commas, one header line), with numbers in full precision.

    Args:
        path: CSV file; written completely or not at all.
        rows: one mapping per row. A generator is consumed row by row if ``columns`` are given.
        columns: header. Default: all keys in the order of their first appearance. If a row lacks a key, its cell is
            empty.

    Raises:
        ConfigurationError: a row has a key that is not in ``columns``.
    """
    if columns is None:
        rows = list(rows)
        columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        try:
            writer.writerows(rows)
        except ValueError as error:
            raise ConfigurationError(
                f"{path}: a row does not fit the columns {list(columns)}: {error}."
            ) from error


def nuclei_rows(prediction: NucleiPrediction) -> Iterator[dict[str, object]]:
    """Yield one row per nucleus with the keys of :data:`NUCLEI_COLUMNS`."""
    # The shortest text of a float32 ("0.9"), not the digits of its double (0.8999999761581421).
    scores = (float(str(score)) for score in prediction.table["score"])
    for values, score in zip(prediction.table.tolist(), scores, strict=True):
        row: dict[str, object] = dict(zip(NUCLEI_COLUMNS, values, strict=False))
        row["score"] = score
        row["class_name"] = prediction.class_names[values[1]]
        yield row


def write_json(path: Path | str, document: object) -> None:
    """Write a document as JSON (UTF-8, indented); NaN and infinite numbers become null.

    Args:
        path: JSON file; written completely or not at all.
        document: mappings, sequences, strings, numbers, booleans, None, paths, NumPy scalars and arrays.

    Raises:
        ConfigurationError: a value has another type.
    """
    text = json.dumps(_plain(document, path), indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _plain(value: object, path: Path | str) -> object:
    """Convert ``value`` to JSON types."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item, path) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, path) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int)):
        return value
    raise ConfigurationError(
        f"{path}: a value of type {type(value).__name__} cannot be written as JSON: {value!r}."
    )


def write_evaluation(output_dir: Path | str, document: Mapping[str, Any]) -> dict[str, Path]:
    """Write an evaluation as CSV tables and ``summary.json``.

    Args:
        output_dir: folder for the files; created if missing. Tables of an earlier evaluation are replaced or removed.
        document: evaluation in plain types. The entries named in :data:`TABLES` are lists of rows; those that are not
            empty become ``<name>.csv``. ``summary.json`` holds everything except the table per image.

    Returns:
        The paths of the files under the names of the tables and ``json``.
    """
    output_dir = Path(output_dir)
    written = {}
    for name in TABLES:
        path = output_dir / f"{name}.csv"
        if document.get(name):
            write_table(path, document[name])
            written[name] = path
        else:
            path.unlink(missing_ok=True)
    written["json"] = output_dir / "summary.json"
    write_json(written["json"], {key: value for key, value in document.items() if key != "per_image"})
    return written
