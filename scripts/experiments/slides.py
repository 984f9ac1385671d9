"""What an experiment says of whole slides: their nuclei, how long they took, and their metrics against the truth."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.steps import Places, SlideRun, folder_of, is_done
from nucsam_monai.io import write_json
from nucsam_monai.metrics import LabelPair, instance_metrics
from nucsam_monai.metrics.outlines import table_of_outlines

SUMMARY_FILE = "summary.json"
PICTURES = ("overlay.png", "density.png", "statistics.json")
_COLUMNS = ("tissue_mm2", "nuclei", "nuclei_per_mm2", "seconds_per_mm2", "aji", "pq")


def slide_folder(step: SlideRun, places: Places) -> Path:
    """Return the folder with the nuclei of a slide."""
    return folder_of(step, places) / Path(step.slide.file).stem


def slide_summary(step: SlideRun, places: Places) -> dict[str, float]:
    """Return the numbers of a finished slide by their names; those against the truth are counted once."""
    file = folder_of(step, places) / SUMMARY_FILE
    if not file.is_file():
        write_json(file, _summary(step, places))
    return {name: float(value) for name, value in json.loads(file.read_text(encoding="utf-8")).items()}


def _summary(step: SlideRun, places: Places) -> dict[str, Any]:
    folder = slide_folder(step, places)
    statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    names = ("tissue_mm2", "nuclei", "nuclei_per_mm2")
    numbers = {name: statistics[name] for name in names if statistics[name] is not None}
    with (folder.parent / "cohort.csv").open(encoding="utf-8", newline="") as rows:
        (row,) = csv.DictReader(rows)
    if statistics["tissue_mm2"]:
        numbers["seconds_per_mm2"] = float(row["seconds"]) / statistics["tissue_mm2"]
    if step.slide.truth is not None:
        table = table_of_outlines(places.data_dir / step.slide.truth, folder / "nuclei.parquet")
        numbers |= instance_metrics(LabelPair.of_table(table))._asdict()
    return numbers


def slides_section(steps: Sequence[SlideRun], places: Places) -> str:
    """Return the report's table of slides; empty without any that is done."""
    rows = []
    for step in (step for step in steps if is_done(step, places)):
        numbers = slide_summary(step, places)
        cells = [f"{numbers[name]:.4g}" if name in numbers else "" for name in _COLUMNS]
        rows.append("| " + " | ".join([step.evaluation.method.name, step.slide.name, *cells]) + " |")
    if not rows:
        return ""
    head = "| method | slide | tissue mm2 | nuclei | nuclei/mm2 | s/mm2 | AJI | PQ |\n" + "|---" * 8 + "|"
    return "\n".join(["## Whole slides\n", head, *rows])
