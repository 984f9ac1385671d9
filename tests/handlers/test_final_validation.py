import pytest
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from torch import nn

from nucsam_monai.handlers import FinalValidation


class Recorder(SupervisedEvaluator):
    """Remembers the epochs after which it was asked to validate."""

    def __init__(self):
        super().__init__(device="cpu", val_data_loader=[], network=nn.Identity(), epoch_length=1)
        self.epochs = []

    def run(self, global_epoch=1):
        self.epochs.append(global_epoch)


@pytest.mark.parametrize(
    ("epochs", "interval", "expected"),
    [(3, 10, [3]), (10, 4, [4, 8, 10]), (4, 2, [2, 4]), (2, 1, [1, 2])],
)
def test_the_last_epoch_is_validated_once(epochs, interval, expected):
    recorder, trainer = Recorder(), Engine(lambda engine, batch: None)
    FinalValidation(interval=interval, validator=recorder).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    assert recorder.epochs == expected


def test_a_validation_by_iterations_ends_with_the_last_epoch():
    recorder, trainer = Recorder(), Engine(lambda engine, batch: None)
    FinalValidation(interval=100, validator=recorder, epoch_level=False).attach(trainer)
    trainer.run([0, 0], max_epochs=2)
    assert recorder.epochs == [2]
