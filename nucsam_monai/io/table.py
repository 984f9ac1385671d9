"""Write tables and JSON documents: CSV with exact numbers, JSON without NaN."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_path
from nucsam_monai.utils.prediction import NUCLEUS_DTYPE, NucleiPrediction

NUCLEI_COLUMNS = (*(NUCLEUS_DTYPE.names or ()), "class_name")
"""Columns of a table of nuclei; units are in the names."""

TABLES = ("per_image", "summary", "per_tissue", "per_class", "comparison")
"""Entries of an evaluation that are tables; each becomes a CSV file of that name."""


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
