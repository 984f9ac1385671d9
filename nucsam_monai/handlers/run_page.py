"""Describe a run on MLflow's pages: its name, its description, and the address of the list that it is in."""

import csv
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image

from nucsam_monai.handlers.run_facts import without_passwords
from nucsam_monai.handlers.tracking_store import resolve_tracking_uri, tracking_uri

PORT = 5000
"""Where ``nucsam mlflow`` serves by default."""

MAX_DESCRIPTION_LENGTH = 5000
"""Characters; the shortest limit that MLflow ever had for the text of a tag."""

_NOTE = "mlflow.note.content"
_RANKED_BY = ("aji", "pq", "dice")
_LONGEST_NAME = 20
_DESCRIPTION_PX = 560
_BREAK = "\\\n    "
_TASK = " nuclei segmentation"  # ends the names of most bundles


def runs_page(uri: str, experiment_id: str) -> str:
    """Return the address that lists the runs of an experiment.

    Without ``workflowType`` MLflow opens an overview for language models, on which these runs do not appear.

    Args:
        uri: the resolved tracking URI; a store without a server is shown by ``nucsam mlflow``.
        experiment_id: MLflow's id of the experiment.

    Example:
        >>> runs_page("sqlite:////data/mlflow.db", "1")
        'http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning'
    """
    server = uri.rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{PORT}"
    return f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def where_to_look(uri: str, experiment_id: str) -> str:
    """Return the address of an experiment's runs, with the command that serves it where one is needed."""
    page = without_passwords(runs_page(uri, experiment_id))
    if uri.startswith("http"):
        return page
    own = uri == resolve_tracking_uri(tracking_uri())
    store = "" if own else f" --store {shlex.quote(without_passwords(uri))}"
    return f"{page} (start the server with: nucsam mlflow{store})"


def run_name(
    tags: Mapping[str, Any],
    seed: object = None,
    bundle_root: str | Path | None = None,
    weights: str | Path | None = None,
) -> str:
    """Return a short name for a run: method, weights, stage, data, split and seed, as far as they are known.

    Args:
        tags: tags of the run: ``method`` or ``bundle``, ``stage``, ``dataset`` (several joined by "+"), ``split``.
        seed: seed of the run.
        bundle_root: folder of the bundle, whose ``metadata.json`` names the method if the tags do not.
        weights: weights file of an evaluation.

    Example:
        >>> run_name({"method": "UN-SAM", "dataset": "dsb+tnbc+monuseg+nucls"}, seed=0)
        'UN-SAM, 4 domains, seed 0'
        >>> run_name({"method": "UN-SAM", "dataset": "dsb2018", "split": "test"}, 0, weights="models/compact_he.pt")
        'UN-SAM, he, dsb2018, test, seed 0'
    """
    data = str(tags.get("dataset") or "").split("+")
    parts = [
        str(tags.get("method") or _method(bundle_root) or tags.get("bundle") or "run"),
        "" if weights is None else _weights_name(Path(weights)),
        str(tags.get("stage") or ""),
        data[0] if len(data) == 1 else f"{len(data)} domains",
        str(tags.get("split") or ""),
        "" if seed is None else f"seed {seed}",
    ]
    return ", ".join(part for part in parts if part)


def _method(bundle_root: str | Path | None) -> str | None:
    path = None if bundle_root is None else Path(bundle_root) / "configs" / "metadata.json"
    if path is None or not path.is_file():
        return None
    return str(json.loads(path.read_text(encoding="utf-8"))["name"]).removesuffix(_TASK)


def _weights_name(path: Path) -> str:
    """Return the short name of pretrained weights, or the folder of a training; nothing if it is long."""
    pretrained = path.parent.name == "models"
    name = path.stem.removeprefix("compact").removeprefix("_") if pretrained else path.absolute().parent.name
    return name if len(name) <= _LONGEST_NAME else ""


def described(text: str) -> dict[str, str]:
    """Return the tag that holds the description of a run, cut after the last line that fits."""
    if len(text) > MAX_DESCRIPTION_LENGTH:
        text = text[:MAX_DESCRIPTION_LENGTH].rpartition("\n")[0]
    return {_NOTE: text}


def description(metrics: Mapping[str, float], command: str, overlay: str = "") -> str:
    """Return the description of a run in Markdown: its main metrics, best overlay, command and table of metrics.

    MLflow shows the first lines, and the rest on a click.

    Args:
        metrics: latest values by name. Only those of the validation are listed if there are any, and no bounds of
            intervals.
        command: command that was run.
        overlay: Markdown of a picture, see :func:`picture`.
    """
    listed = {name: value for name, value in metrics.items() if "_ci_" not in name}
    listed = {name: value for name, value in listed.items() if name.startswith("val_")} or listed
    main = [(name, listed.get(f"val_{name}", listed.get(name))) for name in _RANKED_BY]
    rows = [f"| {name} | {value:.4g} |" for name, value in sorted(listed.items())]
    sections = [
        ", ".join(f"**{name} {value:.3f}**" for name, value in main if value is not None),
        overlay,
        f"```\n{_wrapped(command)}\n```",
        "\n".join(["| metric | value |", "|---|---|", *rows]) if rows else "",
    ]
    return "\n\n".join(section for section in sections if section)


def _wrapped(command: str) -> str:
    """Break a command before its options: a long line would push the values of metrics off MLflow's page."""
    first, *words = shlex.split(command)
    first = re.sub(r".*/(python)[\d.]*$", r"\1", first)
    return " ".join([first, *(f"{_BREAK * word.startswith('--')}{shlex.quote(word)}" for word in words)])


def small_copy(image: Path, folder: Path) -> Path:
    """Write a copy of an image that fits into a description: a wider one pushes the metrics off MLflow's page."""
    copy = folder / f"small_{image.name}"
    with Image.open(image) as pixels:
        pixels.thumbnail((_DESCRIPTION_PX, _DESCRIPTION_PX))
        pixels.save(copy)
    return copy


def picture(run_id: str, artifact: str) -> str:
    """Return Markdown that shows an artifact of a run."""
    address = urlencode({"path": artifact, "run_uuid": run_id}, safe="/")
    return f"![{Path(artifact).stem}](get-artifact?{address})"


def best_overlay(folder: Path) -> Path | None:
    """Return the overlay of the image with the highest AJI, else PQ or Dice, of an evaluation's folder."""
    overlays = {path.stem: path for path in sorted((folder / "overlays").glob("*.png"))}
    table = folder / "per_image.csv"
    if not overlays or not table.is_file():
        return None
    with table.open(newline="", encoding="utf-8") as file:
        rows = {f"{row.get('domain', '')}_{row['id']}": row for row in csv.DictReader(file)}
    return max(overlays.values(), key=lambda path: _score(rows.get(path.stem, {})))


def _score(row: Mapping[str, str]) -> float:
    text = next((row[metric] for metric in _RANKED_BY if row.get(metric) not in (None, "", "nan")), "-1")
    return float(text)
