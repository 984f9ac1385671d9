"""The numbers that the papers print, to stand beside ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nucsam_monai.apps.experiments.description import PrintedTable
from nucsam_monai.apps.experiments.reading import read_document
from nucsam_monai.utils.errors import ConfigurationError


@dataclass(frozen=True)
class Printed:
    """One table of a paper.

    Attributes:
        source: the paper.
        number: of the table in the paper.
        caption: what it shows.
        values: ``{row: {(dataset, metric): value}}`` as printed; cells that the paper leaves empty are missing.
    """

    source: str
    number: str
    caption: str
    values: Mapping[str, Mapping[tuple[str, str], float]]

    def value(self, row: str, dataset: str, metric: str) -> float | None:
        """Return one cell; None where the paper has none."""
        return self.values.get(row, {}).get((dataset, metric))


def read_printed(table: PrintedTable) -> Printed:
    """Read a table of a file of printed numbers.

    The file holds ``source`` and ``tables``; a table has ``caption``, ``datasets``, ``metrics`` and ``rows``:
    ``{row: values}`` with the metrics of the first dataset, then those of the next. With ``percent: true`` the
    paper prints per cent.

    Raises:
        ConfigurationError: there is no such table, or a row has more or fewer cells than columns.

    Example:
        >>> read_printed(PrintedTable(Path("unsam/printed.yaml"), "I"))  # doctest: +SKIP
    """
    document = _document(table.file, table.file.stat().st_mtime_ns)
    tables: Mapping[str, Any] = {str(key): value for key, value in document.get("tables", {}).items()}
    if table.table not in tables:
        raise ConfigurationError(f"{table.file}: no table '{table.table}'; it has {', '.join(tables)}.")
    entry = tables[table.table]
    columns = [(dataset, metric) for dataset in entry["datasets"] for metric in entry["metrics"]]
    values = {}
    for row, cells in entry["rows"].items():
        if len(cells) != len(columns):
            raise ConfigurationError(
                f"{table.file}: table {table.table}, row '{row}': {len(cells)} cells, expected {len(columns)}."
            )
        values[str(row)] = {
            column: float(cell) for column, cell in zip(columns, cells, strict=True) if cell is not None
        }
    return Printed(str(document["source"]), table.table, str(entry["caption"]), values)


@lru_cache(maxsize=16)
def _document(file: Path, modified_ns: int) -> Mapping[str, Any]:
    """Read a file once as long as it stays: every table of a paper is in it."""
    return read_document(file)
