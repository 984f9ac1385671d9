"""All metrics of an evaluation of nuclei with classes and scores."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils import convert_to_numpy

from nucsam_monai.handlers.evaluation_report import write_comparison
from nucsam_monai.io import write_evaluation
from nucsam_monai.metrics import (
    DatasetEvaluation,
    EvaluationSample,
    ImageMeasurement,
    evaluation_of,
    evaluation_settings,
    measure_image,
)
from nucsam_monai.utils.prediction import NucleiPrediction

logger = logging.getLogger(__name__)


class NucleiEvaluation:
    """Measure every image with :func:`nucsam_monai.metrics.evaluate`'s metrics, report them and write the tables.

    The evaluator's items hold ``id``, ``domain``, ``image_path``, ``instances`` ``(1, H, W)``, perhaps ``tissue``,
    ``group`` and ``fold``, and with several classes ``point_classes`` ``(n,)`` in the order of the instance ids;
    its outputs hold a ``NucleiPrediction`` under ``pred``. After the epoch ``engine.state.metrics`` has the values
    over all images, for example ``val_pq``, ``val_mpq`` and ``val_hovernet_f1``, and :attr:`report` everything.
    One process evaluates all images.

    Args:
        class_names: classes that are measured; with only one the classes of predictions do not count.
        radius_px: distance within which a centroid counts as detected.
        output_dir: where tables and overlays go; None writes no files.
        facts: what else ``summary.json`` says of the evaluation.
        overlays_per_domain: the first images of every domain get an overlay.
        prefix: of the metrics' names in the engine's state.
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
        values = {f"{self.prefix}{name}": found.value for name, found in overall.items()}
        engine.state.metrics.update({name: value for name, value in values.items() if not math.isnan(value)})
        if self.output_dir is not None:
            write_evaluation(self.output_dir, {**self.facts, **self.report.to_dict()})
            logger.info("tables: %s", self.output_dir)

    def _sample(
        self, item: Mapping[str, Any], true: np.ndarray, prediction: NucleiPrediction
    ) -> EvaluationSample:
        """Join what the item says of an image and what was predicted."""
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
