"""Validation every few epochs, and never without the last one."""

from ignite.engine import Engine, Events
from monai.engines import Evaluator

from nucsam_monai.utils.errors import ConfigurationError


class EpochValidation:
    """Validate after every ``interval`` epochs and after the last one of the training.

    MONAI's ``ValidationHandler`` leaves the epochs after the last multiple of its interval out, and a training shorter
    than the interval altogether: where weights are kept of validated epochs alone, none would be kept.

    Args:
        validator: is run.
        interval: epochs from one validation to the next.

    Raises:
        ConfigurationError: the interval is below 1.
    """

    def __init__(self, validator: Evaluator, interval: int) -> None:
        if interval < 1:
            raise ConfigurationError(f"val_interval {interval}: expected 1 epoch or more.")
        self.validator = validator
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, in front of the handlers that need the validation's result."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self.is_due), self.validate)

    def is_due(self, engine: Engine, epoch: int) -> bool:
        """Return whether ``epoch``, counted from 1, is validated."""
        return epoch % self.interval == 0 or epoch == engine.state.max_epochs

    def validate(self, engine: Engine) -> None:
        """Run the validator; its epoch is the trainer's."""
        self.validator.run(engine.state.epoch)
