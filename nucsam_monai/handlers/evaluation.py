"""Write the reports and files of an evaluation and of an inference."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils import convert_to_numpy, string_list_all_gather
from numpy.typing import NDArray

from nucsam_monai.engines.results_folder import ResultsFolder
from nucsam_monai.io import (
    OVERLAY_PX,
    comparison_overlay,
    read_image,
    write_evaluation,
    write_json,
    write_label_image,
    write_png,
    write_prediction,
)
from nucsam_monai.metrics import (
    DatasetEvaluation,
    EvaluationSample,
    ImageMeasurement,
    evaluation_of,
    evaluation_settings,
    matched_ids,
    measure_image,
)
from nucsam_monai.metrics.summary import summarise_by_domain
from nucsam_monai.utils.names import counted
from nucsam_monai.utils.prediction import NucleiPrediction

logger = logging.getLogger(__name__)


class EvaluationReport:
    """Write ``per_image.csv``, ``summary.csv``, ``summary.json`` and some overlays of an evaluation.

    The rows come from ``engine.state.metric_details``, so the report is attached after the handlers that
    measure. The evaluator's items hold ``id``, ``domain``, ``image_path`` and perhaps ``group``, its outputs
    a ``NucleiPrediction`` under ``pred`` and the true ``label_instances``. Every mean in the summary has a 95 %
    bootstrap interval over the images, or over the groups if there are any. The first images of every domain get an
    overlay, the same ones in every evaluation.

    Args:
        output_dir: folder for the files.
        facts: further entries of ``summary.json``: weights, split, seed.
        overlays_per_domain: images with an overlay.
        prefix: prefix of the metric names, removed in the tables.
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
        output_dir: folder of the evaluation.
        item: image with ``id``, ``domain`` and ``image_path``.
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
        output_dir: folder for ``per_image.csv``, ``summary.csv`` and ``summary.json``.
        rows: one per image with ``id``, ``domain`` and the metrics.
        facts: further entries of ``summary.json``.
    """
    summary = summarise_by_domain(rows)
    write_evaluation(output_dir, {**facts, "per_image": rows, "summary": summary})
    for row in summary:
        means = ", ".join(f"{key} {row[key]:.4f}" for key in ("dice", "aji", "pq") if key in row)
        logger.info("%s (%s): %s", row["domain"], counted(row["images"], "image"), means)
    logger.info("tables: %s", output_dir)


class NucleiEvaluation:
    """Measure every image with the metrics of :func:`nucsam_monai.metrics.evaluate`, report them and write the tables.

    The evaluator's items hold ``id``, ``domain``, ``image_path``, ``instances`` ``(1, H, W)``, perhaps ``tissue``,
    ``group`` and ``fold``, and with several classes ``point_classes`` ``(n,)`` in the order of the instance ids;
    its outputs hold a ``NucleiPrediction`` under ``pred``. After the epoch ``engine.state.metrics`` has the values
    over all images, for example ``val_pq``, ``val_mpq`` and ``val_hovernet_f1``, and :attr:`report` everything.
    One process evaluates all images.

    Args:
        class_names: classes that are measured; with only one the classes of predictions do not count.
        radius_px: distance within which a centroid counts as detected.
        output_dir: folder for tables and overlays; None writes no files.
        facts: further entries of ``summary.json``.
        overlays_per_domain: the first images of every domain get an overlay.
        prefix: prefix of the metric names in the engine's state.
    """

    def __init__(
        self,
        class_names: Sequence[str] = ("nucleus",),
        radius_px: float | None = None,
        *,
        output_dir: str | Path | None = None,
        facts: Mapping[str, Any] | None = None,
        overlays_per_domain: int = 3,
        prefix: str = "val_",
    ) -> None:
        self.settings = evaluation_settings(class_names, radius_px)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.facts = dict(facts or {})
        self.overlays_per_domain = overlays_per_domain
        self.prefix = prefix
        self.report: DatasetEvaluation | None = None
        self._measured: list[ImageMeasurement] = []
        self._drawn: Counter[str] = Counter()

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator with :class:`~nucsam_monai.handlers.DecollatePrediction`."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)

    def start(self, _engine: Engine) -> None:
        """Forget the last evaluation."""
        self._measured = []
        self._drawn.clear()

    def add(self, engine: Engine) -> None:
        """Measure the images of one iteration and draw those that get an overlay."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            prediction, true = output["pred"], convert_to_numpy(item["instances"])[0].astype(np.int32)
            self._measured.append(measure_image(self._sample(item, true, prediction), self.settings))
            domain = item["domain"]
            if self.output_dir is not None and self._drawn[domain] < self.overlays_per_domain:
                self._drawn[domain] += 1
                write_comparison(self.output_dir, item, true, prediction.instances)

    def finish(self, engine: Engine) -> None:
        """Summarise all images."""
        self.report = evaluation_of(self._measured, self.settings)
        overall = {**self.report.summary[-1].estimates, **self.report.tissue_means}
        engine.state.metrics.update({f"{self.prefix}{name}": found.value for name, found in overall.items()})
        if self.output_dir is not None:
            write_evaluation(self.output_dir, {**self.facts, **self.report.to_dict()})
            logger.info("tables: %s", self.output_dir)

    def _sample(
        self, item: Mapping[str, Any], true: np.ndarray, prediction: NucleiPrediction
    ) -> EvaluationSample:
        """Combine an item's facts with the prediction."""
        ids, table = np.unique(true[true > 0]).tolist(), prediction.table
        with_classes = len(self.settings.class_names) > 1
        predicted = table["id"].tolist()
        return EvaluationSample(
            id=item["id"],
            y=true,
            y_pred=prediction.instances,
            y_classes=dict(zip(ids, item["point_classes"].tolist(), strict=True)) if with_classes else None,
            y_pred_classes=dict(zip(predicted, table["class_id"].tolist(), strict=True))
            if with_classes
            else None,
            scores=dict(zip(predicted, table["score"].tolist(), strict=True)),
            tissue=item.get("tissue"),
            group=item.get("group"),
            domain=item["domain"],
            fold=item.get("fold"),
        )


class LabelMapWriter:
    """Write the label map of every image of an evaluation, and the class of every nucleus if there are classes.

    The files are ``<domain>_<id>.tif`` and ``<domain>_<id>.json`` (``{instance id: class id}``). The evaluator's
    items hold ``id`` and ``domain``; its outputs a ``NucleiPrediction`` under ``pred``.

    Args:
        output_dir: folder for the files.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator, after the handler that splits batches into items, if any."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        """Write the images of one iteration."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            stem = self.output_dir / f"{item['domain']}_{item['id']}"
            prediction = output["pred"]
            write_label_image(stem.with_name(f"{stem.name}.tif"), prediction.instances)
            if len(prediction.class_names) > 1:
                ids, classes = (prediction.table[name].tolist() for name in ("id", "class_id"))
                write_json(stem.with_name(f"{stem.name}.json"), dict(zip(ids, classes, strict=True)))


class PredictionWriter:
    """Write label image, GeoJSON, table and overlay of every image of an evaluator.

    The evaluator's items hold ``id`` and ``pixels`` (``(3, H, W)`` uint8 RGB), its outputs a ``NucleiPrediction``
    under ``pred``.

    Args:
        output_dir: folder for the files, see :func:`nucsam_monai.io.write_prediction`.
        overlay_px: longest side of the overlay; 0 writes none.
        results: records the files that are written to the folder.
    """

    def __init__(
        self,
        output_dir: str | Path,
        overlay_px: int = OVERLAY_PX,
        results: ResultsFolder | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.overlay_px = overlay_px
        self.results = results

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        if self.results is not None:
            self.results.attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        """Write the images of one iteration."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            prediction = output["pred"]
            pixels = convert_to_numpy(item["pixels"]).transpose(1, 2, 0)
            paths = write_prediction(
                prediction, pixels, self.output_dir, item["id"], overlay_px=self.overlay_px
            )
            if self.results is not None:
                self.results.add(item["id"], len(prediction), list(paths.values()))
            logger.info("%s: %d nuclei, %s", item["id"], len(prediction), paths["instances"])
