"""Keep the predicted label maps of an evaluation."""

import logging
from pathlib import Path

from ignite.engine import Engine, Events

from nucsam_monai.io import write_json, write_label_image

logger = logging.getLogger(__name__)


class LabelMapWriter:
    """Write the label map of every image of an evaluation, and the class of every nucleus where there are classes.

    The files are ``<domain>_<id>.tif`` and ``<domain>_<id>.json`` (``{instance id: class id}``). The evaluator's
    items hold ``id`` and ``domain``, its outputs a ``NucleiPrediction`` under ``pred``.

    Args:
        output_dir: where the files go.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator, behind the handler that splits batches into items where there is one."""
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
