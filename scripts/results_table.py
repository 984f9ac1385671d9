"""Print the summaries of several evaluations as one Markdown table.

Example:
    python scripts/results_table.py "UN-SAM=output/evaluate" "Otsu=output/otsu"
"""

import json
import sys
from pathlib import Path

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.utils.errors import ConfigurationError

COLUMNS = ("dice", "iou", "aji", "dq", "sq", "pq")


def results_table(evaluations: dict[str, Path]) -> str:
    """Return one row per dataset and method.

    Args:
        evaluations: name of the method to the folder that holds its ``summary.json``.
    """
    summaries = {
        name: json.loads((Path(folder) / "summary.json").read_text())["summary"]
        for name, folder in evaluations.items()
    }
    lines = [
        "| dataset | images | method | " + " | ".join(column.upper() for column in COLUMNS) + " |",
        "|---|---|---|" + "---|" * len(COLUMNS),
    ]
    domains = dict.fromkeys(row["domain"] for rows in summaries.values() for row in rows)
    for domain in domains:
        for name, rows in summaries.items():
            for row in rows:
                if row["domain"] == domain:
                    values = " | ".join("-" if row[key] is None else f"{row[key]:.3f}" for key in COLUMNS)
                    lines.append(f"| {domain} | {row['images']} | {name} | {values} |")
    return "\n".join(lines)


def main(*evaluations: str) -> None:
    """Print the table.

    Args:
        evaluations: ``name=folder`` of each method.
    """
    pairs = [evaluation.partition("=") for evaluation in evaluations]
    if not pairs or not all(folder for _, _, folder in pairs):
        raise ConfigurationError(
            f"expected name=folder for each evaluation, found: {' '.join(evaluations) or 'nothing'}"
        )
    print(results_table({name: Path(folder) for name, _, folder in pairs}))


if __name__ == "__main__":
    sys.exit(run_command(main))
