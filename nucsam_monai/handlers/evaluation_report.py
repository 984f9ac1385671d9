"""Tables and pictures of an evaluation."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils import convert_to_numpy, string_list_all_gather
from numpy.typing import NDArray

from nucsam_monai.io import comparison_overlay, read_image, write_evaluation, write_png
from nucsam_monai.metrics import matched_ids
from nucsam_monai.metrics.summary import summarise_by_domain

logger = logging.getLogger(__name__)


class EvaluationReport:
    """Write ``per_image.csv``, ``summary.csv``, ``summary.json`` and some overlays of an evaluation.

    The rows come from ``engine.state.metric_details``, so the report is attached behind the handlers that
    measure. The evaluator's items hold ``id``, ``domain``, ``image_path`` and perhaps ``group``, its outputs
    a ``NucleiPrediction`` under ``pred`` and the true ``label_instances``. Every mean in the summary has a 95 %
    bootstrap interval over the images, or over the groups if there are any. The first images of every domain get an
    overlay, the same ones in every evaluation.

    Args:
        output_dir: where the files go.
        facts: what else ``summary.json`` says of the evaluation: weights, split, seed.
        overlays_per_domain: images with an overlay.
        prefix: of the metrics' names, taken off in the tables.
    """

    def __init__(
        self,
        output_dir: str | Path,
        facts: Mapping[str, Any] | None = None,
        overlays_per_domain: int = 3,
        prefix: str = "val_",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.facts = dict(facts or {})
        self.overlays_per_domain = overlays_per_domain
        self.prefix = prefix
        self._ids: list[str] = []
        self._domains: list[str] = []
        self._groups: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)

    def start(self, _engine: Engine) -> None:
        """Forget the last evaluation."""
        self._ids, self._domains, self._groups = [], [], []

    def add(self, engine: Engine) -> None:
        """Note the images of one iteration and draw those that get an overlay."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            if Counter(self._domains)[item["domain"]] < self.overlays_per_domain:
                true = convert_to_numpy(output["label_instances"])[0].astype(np.int32)
                write_comparison(self.output_dir, item, true, output["pred"].instances)
            self._ids.append(item["id"])
            self._domains.append(item["domain"])
            self._groups.append(item.get("group") or "")

    def finish(self, engine: Engine) -> None:
        """Write the tables."""
        ids, domains, groups = map(string_list_all_gather, (self._ids, self._domains, self._groups))
        if engine.state.rank > 0:
            return
        details = {
            name.removeprefix(self.prefix): convert_to_numpy(values)
            for name, values in engine.state.metric_details.items()
        }
        rows = [
            {
                **{"id": name, "domain": domain, **({"group": group} if group else {})},
                **{key: float(values[i]) for key, values in details.items()},
            }
            for i, (name, domain, group) in enumerate(zip(ids, domains, groups, strict=True))
        ]
        write_report(self.output_dir, rows, self.facts)


def write_comparison(
    output_dir: Path, item: Mapping[str, Any], true: NDArray[np.int32], predicted: NDArray[np.int32]
) -> None:
    """Draw truth and prediction over an image, in ``overlays/<domain>_<id>.png``.

    Args:
        output_dir: of the evaluation.
        item: with ``id``, ``domain`` and ``image_path``.
        true: ``(H, W)`` label map.
        predicted: ``(H, W)`` label map.
    """
    matched_true, matched_predicted = matched_ids(true, predicted)
    overlay = comparison_overlay(
        read_image(item["image_path"]),
        true,
        predicted,
        matched_true=matched_true,
        matched_predicted=matched_predicted,
    )
    write_png(output_dir / "overlays" / f"{item['domain']}_{item['id']}.png", overlay)


def write_report(output_dir: Path, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """Write the tables of an evaluation and log the summary.

    Args:
        output_dir: where ``per_image.csv``, ``summary.csv`` and ``summary.json`` go.
        rows: one per image with ``id``, ``domain`` and the metrics.
        facts: further entries of ``summary.json``.
    """
    summary = summarise_by_domain(rows)
    write_evaluation(output_dir, {**facts, "per_image": rows, "summary": summary})
    for row in summary:
        means = ", ".join(f"{key} {row[key]:.4f}" for key in ("dice", "aji", "pq") if key in row)
        logger.info("%s (%d images): %s", row["domain"], row["images"], means)
    logger.info("tables: %s", output_dir)
