import math

import pytest
from ignite.engine import Engine, Events

from nucsam_monai.handlers import EarlyStopping
from nucsam_monai.utils.errors import ConfigurationError


def engines(scores, patience, state=None, interval=1):
    """A trainer of ``len(scores)`` epochs whose validations measure ``scores``."""
    validator = Engine(lambda engine, batch: None)
    trainer = Engine(lambda engine, batch: None)
    handler = EarlyStopping(validator, patience)
    handler.attach(trainer)
    if state is not None:
        trainer.add_event_handler(Events.STARTED, lambda engine: handler.load_state_dict(state))

    @trainer.on(Events.EPOCH_COMPLETED(every=interval))
    def validate(engine):
        validator.run([0])

    measure = iter(scores)

    def score(engine):
        engine.state.metrics["val_dice"] = next(measure)

    # before the handler under test, as the metrics of MONAI's evaluators are
    validator._event_handlers[Events.EPOCH_COMPLETED].insert(0, (score, (validator,), {}))
    return trainer, handler


def epochs(scores, patience, **options):
    trainer, _ = engines(scores, patience, **options)
    trainer.run([0], max_epochs=len(scores) * options.get("interval", 1))
    return trainer.state.epoch


@pytest.mark.parametrize(
    ("scores", "patience", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], 1, 4),
        ([0.3, 0.2, 0.1, 0.4], 2, 3),
        ([0.3, 0.2, 0.4, 0.4, 0.4, 0.5], 2, 5),
        ([0.3, 0.3], 1, 2),
        ([math.nan, math.nan, 0.1, math.nan, math.nan, math.nan], 3, 6),
        ([math.nan, math.nan, 0.1], 2, 2),
        ([0.3] * 30, None, 30),
    ],
)
def test_it_stops_after_as_many_validations_without_a_better_one(scores, patience, expected):
    assert epochs(scores, patience) == expected


def test_validations_are_counted_rather_than_epochs():
    assert epochs([0.3, 0.2, 0.1, 0.1], 2, interval=5) == 15


def test_a_resumed_training_goes_on_counting():
    trainer, handler = engines([0.3, 0.2], 3)
    trainer.run([0], max_epochs=2)
    state = handler.state_dict()
    assert state == {"best": 0.3, "without_improvement": 1}
    assert epochs([0.25, 0.25, 0.25], 3, state=state) == 2


def test_a_stopped_training_stays_stopped():
    trainer, _ = engines([0.5], 2, state={"best": 0.3, "without_improvement": 2})
    trainer.run([0], max_epochs=3)
    assert trainer.state.iteration == 0
    assert epochs([0.5, 0.2], 3, state={"best": 0.3, "without_improvement": 2}) == 2


def test_values_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match="patience 0"):
        EarlyStopping(Engine(lambda engine, batch: None), 0)
    validator = Engine(lambda engine, batch: None)
    validator.state.metrics = {"val_loss": 1.0}
    with pytest.raises(
        ConfigurationError, match="'val_dice' is not measured; the validator reports val_loss"
    ):
        EarlyStopping(validator, 1).compare(validator)
