"""Validation every few epochs and after the last one."""

from ignite.engine import Engine, Events
from monai.handlers import ValidationHandler


class FinalValidation(ValidationHandler):
    """MONAI's :class:`~monai.handlers.ValidationHandler` that also validates when the training is over.

    Weights are kept of epochs that were validated; a training of fewer epochs than the interval would leave none,
    and the last epochs of a longer one would never be considered. The arguments are those of MONAI's handler.

    Example:
        Epochs 4, 8 and 10 of ten::

            {"_target_": "nucsam_monai.handlers.FinalValidation", "validator": "@validate#evaluator",
             "epoch_level": true, "interval": 4}
    """

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        super().attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.validate_last)

    def validate_last(self, engine: Engine) -> None:
        """Validate after the last epoch, unless the interval has just done so."""
        is_last = engine.state.epoch == engine.state.max_epochs
        if is_last and not (self.epoch_level and engine.state.epoch % self.interval == 0):
            self(engine)
