"""Write what was found in every image."""

import logging
from pathlib import Path

from ignite.engine import Engine, Events
from monai.utils import convert_to_numpy

from nucsam_monai.io import write_prediction

logger = logging.getLogger(__name__)


class PredictionWriter:
    """Write label image, GeoJSON, table and overlay of every image of an evaluator.

    The evaluator's items hold ``id`` and ``pixels`` (``(3, H, W)`` uint8 RGB), its outputs a ``NucleiPrediction``
    under ``pred``.

    Args:
        output_dir: where the files go, see :func:`nucsam_monai.io.write_prediction`.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        """Write the images of one iteration."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            prediction = output["pred"]
            pixels = convert_to_numpy(item["pixels"]).transpose(1, 2, 0)
            paths = write_prediction(prediction, pixels, self.output_dir, item["id"])
            logger.info("%s: %d nuclei, %s", item["id"], len(prediction), paths["overlay"])
