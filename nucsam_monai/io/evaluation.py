"""The files of an evaluation: tables as CSV, everything else in one JSON document."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nucsam_monai.io.table import write_json, write_table

TABLES = ("per_image", "summary", "per_tissue", "per_class", "comparison")
"""Entries of an evaluation that are tables; each becomes a CSV file of that name."""


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
