"""Stop a training that no longer improves, also across an interruption."""

import logging
import math
from collections.abc import Mapping

from ignite.engine import Engine, Events

from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)


class EarlyStopping:
    """Stop the training after ``patience`` validations without a new best metric.

    MONAI's ``EarlyStopHandler`` neither keeps its count over an interruption nor can be switched off by a value.
    Here the count is a part of :class:`~nucsam_monai.handlers.TrainingState`, and a training that was stopped
    stops at once when it is resumed.

    Args:
        validator: the engine that validates within the training.
        patience: validations without improvement; None never stops.
        metric: name in the validator's metrics, higher is better. A NaN is no improvement.

    Raises:
        ConfigurationError: ``patience`` is below 1.

    Example:
        In a bundle, among the handlers of the trainer::

            {"_target_": "nucsam_monai.handlers.EarlyStopping", "validator": "@validate#evaluator", "patience": 10}
    """

    def __init__(self, validator: Engine, patience: int | None = 10, metric: str = "val_dice") -> None:
        if patience is not None and patience < 1:
            raise ConfigurationError(
                f"early stopping: patience {patience}, expected 1 or more validations, or null for never."
            )
        self.validator = validator
        self.patience = patience
        self.metric = metric
        self.best = -math.inf
        self.without_improvement = 0
        self._trainer: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer; the validator is attached to as well."""
        self._trainer = engine
        self.validator.add_event_handler(Events.EPOCH_COMPLETED, self.compare)

    def compare(self, validator: Engine) -> None:
        """Count a validation that ended.

        Raises:
            ConfigurationError: the validator has no such metric.
        """
        if self.metric not in validator.state.metrics:
            reported = ", ".join(validator.state.metrics) or "nothing"
            raise ConfigurationError(
                f"early stopping: '{self.metric}' is not measured; the validator reports {reported}."
            )
        value = float(validator.state.metrics[self.metric])
        if value > self.best:
            self.best, self.without_improvement = value, 0
        else:
            self.without_improvement += 1
        self._stop_if_exhausted()

    def state_dict(self) -> dict[str, float | int]:
        """Return what a resumed training needs to go on counting."""
        return {"best": self.best, "without_improvement": self.without_improvement}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Take over the count of an interrupted training."""
        self.best, self.without_improvement = float(state["best"]), int(state["without_improvement"])
        self._stop_if_exhausted()

    def _stop_if_exhausted(self) -> None:
        if self.patience is None or self.without_improvement < self.patience or self._trainer is None:
            return
        logger.info(
            "no better %s than %.5f in %d validations: the training stops.",
            self.metric,
            self.best,
            self.without_improvement,
        )
        self._trainer.terminate()
