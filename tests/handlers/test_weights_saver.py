import logging
import math

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine
from torch import nn

from nucsam_monai.engines import DomainBatchSampler
from nucsam_monai.handlers import BestWeightsSaver
from nucsam_monai.networks.sam import read_header
from nucsam_monai.networks.sam.weights import read_safetensors
from nucsam_monai.utils.errors import ConfigurationError

HEADER = {"method": "toy", "sam_variant": "none"}


class Validations:
    """A validator that is run after chosen epochs of a training with given losses."""

    def __init__(self, path, **options):
        self.network = nn.Linear(1, 1)
        self.saver = BestWeightsSaver(self.network, path, HEADER, **options)
        self.engine = Engine(lambda engine, batch: None)
        self.path = path

    def after(self, epoch, **metrics):
        """Validate, with the epoch in the weights; return the epoch of the saved weights."""
        nn.init.constant_(self.network.weight, float(epoch))
        self.engine.state.epoch = epoch
        self.engine.state.metrics = metrics
        self.saver.compare(self.engine)
        return self.saved()

    def saved(self):
        if not self.path.exists():
            return None
        epoch = int(read_safetensors(self.path)["weight"])
        assert read_header(self.path)["epoch"] == str(epoch)
        return epoch


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "model.safetensors"


def schedule(kind):
    items = [{"domain": name} for name in "ab"]
    return DomainBatchSampler(items, ["a", "b"], batch_size=1, epochs=2, schedule=kind)


@pytest.mark.parametrize("options", [{}, {"sampler": schedule("interleaved")}])
def test_only_improvements_are_saved(path, options):
    validations = Validations(path, **options)
    losses = [0.5, 0.6, 0.5, 0.4, math.nan, math.inf, 0.3]
    saved = [validations.after(epoch, val_loss=loss) for epoch, loss in enumerate(losses, start=1)]
    assert saved == [1, 1, 1, 4, 4, 4, 7]
    header = read_header(path)
    assert header["method"] == "toy"
    assert float(header["val_loss"]) == 0.3
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_nan_is_not_saved_and_said(path, caplog):
    with caplog.at_level(logging.WARNING):
        assert Validations(path).after(1, val_loss=math.nan) is None
    assert "val_loss is NaN" in caplog.text


def test_every_domain_of_a_sequential_training_starts_anew(path):
    validations = Validations(path, sampler=schedule("sequential"))
    assert validations.after(1, val_loss_a=0.2, val_loss_b=9.0) == 1
    assert validations.after(2, val_loss_a=0.3, val_loss_b=0.1) == 1
    assert validations.after(3, val_loss_a=0.1, val_loss_b=0.9) == 3
    assert validations.after(4, val_loss_a=0.1, val_loss_b=0.8) == 4
    assert float(read_header(path)["val_loss_b"]) == 0.8


def test_the_file_of_an_earlier_training_is_kept(path):
    Validations(path).after(5, val_loss=0.1)
    second = Validations(path)
    assert second.after(1, val_loss=0.9) == 1
    assert second.after(2, val_loss=0.8) == 2
    previous = path.with_name("model.previous.safetensors")
    assert read_header(previous)["epoch"] == "5"
    assert sorted(path.parent.iterdir()) == sorted([path, previous])


def test_another_metric_may_decide(path):
    validations = Validations(path, metric="error")
    assert validations.after(1, error=torch.tensor(0.5), val_loss=9.0) == 1
    assert validations.after(2, error=torch.tensor(0.7), val_loss=1.0) == 1


@pytest.mark.parametrize(
    ("options", "metrics", "message"),
    [
        ({}, {"val_dice": 1.0, "val_pq": 1.0}, "'val_loss': the validator reports val_dice, val_pq"),
        ({}, {}, "reports nothing"),
        ({"sampler": schedule("sequential")}, {"val_loss": 1.0}, "'val_loss_a'"),
    ],
)
def test_missing_metric_is_an_error(path, options, metrics, message):
    with pytest.raises(ConfigurationError, match=message):
        Validations(path, **options).after(1, **metrics)
    assert not path.exists()


def test_a_metric_that_grows_may_decide(path):
    validations = Validations(path, metric="val_dice", mode="max")
    dice = [0.0, math.nan, 0.4, 0.3, 0.5]
    saved = [validations.after(epoch, val_dice=value) for epoch, value in enumerate(dice, start=1)]
    assert saved == [1, 1, 3, 3, 5]
    resumed = Validations(path, metric="val_dice", mode="max")
    resumed.saver.load_state_dict(validations.saver.state_dict())
    assert resumed.after(6, val_dice=0.45) == 5
    resumed.saver.load_state_dict({"best": None, "domain": None, "owns_file": True})
    assert resumed.after(7, val_dice=0.01) == 7
    with pytest.raises(ConfigurationError, match="mode 'up': expected 'min' or 'max'"):
        Validations(path, mode="up")


def test_a_resumed_training_goes_on_comparing(path):
    first = Validations(path, sampler=schedule("sequential"))
    first.after(3, val_loss_b=0.5)
    second = Validations(path, sampler=schedule("sequential"))
    second.saver.load_state_dict(first.saver.state_dict())
    assert second.saver.state_dict() == first.saver.state_dict()
    assert second.after(4, val_loss_b=0.6) == 3
    assert second.after(4, val_loss_b=0.4) == 4
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_only_the_first_process_writes(path, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    for rank in (1, 0):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        validations = Validations(path)
        assert validations.after(1, val_loss=0.5) == (None if rank else 1)
        assert validations.saver.best == 0.5


def test_the_state_of_a_training_without_validation(path):
    saver = Validations(path).saver
    state = saver.state_dict()
    assert state == {"best": math.inf, "domain": None, "owns_file": False}
    saver.load_state_dict(state)
    assert saver.state_dict() == state
