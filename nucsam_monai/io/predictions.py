"""Write the results of an image, and tables: CSV with exact numbers, JSON without NaN."""

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
    """Write the label image, the polygons, the table and the overlay of one image.

    Everything is checked before the first file is written, and the files appear together, complete or not at all.
    Outlines in the overlay are coloured by class, or by nucleus with a single class.

    Args:
        prediction: the nuclei; none at all is fine.
        image: ``(H, W, 3)`` uint8 RGB, the image that was segmented.
        output_dir: made if missing.
        stem: start of the files' names, see :func:`nucsam_monai.io.images.output_stems`.
        object_type: QuPath's kind of object in the GeoJSON file.
        overlay_px: longest side of the overlay, to which larger images are reduced; 0 writes none.

    Returns:
        The written paths by kind: ``instances`` (``<stem>_instances.tif``), ``geojson``
        (``<stem>.geojson``), ``table`` (``<stem>_nuclei.csv``) and, unless switched off, ``overlay``
        (``<stem>_overlay.png``).

    Raises:
        ConfigurationError: image, label map and table do not belong together, ``stem`` is not a file name, or
            ``overlay_px`` is below 0.
        OutputError: a file can't be written.
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
    """Return the names of the files of one image by kind."""
    return {
        "instances": f"{stem}_instances.tif",
        "geojson": f"{stem}.geojson",
        "table": f"{stem}_nuclei.csv",
        "overlay": f"{stem}_overlay.png",
    }


def _check(prediction: NucleiPrediction, image: np.ndarray, stem: str) -> None:
    """Refuse input that would fail after some files are written."""
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
    """Write rows as CSV (UTF-8, comma, one header line); numbers in full, so that they read back equal.

    Args:
        path: the file; it appears complete or not at all.
        rows: one mapping per row; with ``columns`` they are taken one by one and may come from a generator.
        columns: the header. Default: all keys of all rows in the order of their first appearance. Where a row
            lacks a key the cell is empty.

    Raises:
        ConfigurationError: a row has a key that ``columns`` lacks.
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
    """Write a document as JSON (UTF-8, indented); NaN and infinities become null.

    Args:
        path: the file; it appears complete or not at all.
        document: mappings, sequences, strings, numbers, booleans, None, paths, NumPy scalars and arrays.

    Raises:
        ConfigurationError: a value of another type.
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
    """Write an evaluation as tables and as ``summary.json``.

    Args:
        output_dir: made if missing; files of an earlier evaluation are replaced, those of tables that this one
            lacks are removed.
        document: the evaluation in plain types. Of its entries those in :data:`TABLES` are lists of rows and
            become ``<name>.csv`` unless they are empty; ``summary.json`` holds all but the per-image table.

    Returns:
        The written files by name of the table, and ``json``.
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
