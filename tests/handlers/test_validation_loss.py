import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from nucsam_monai.handlers import ValidationLoss
from nucsam_monai.transforms import ProbabilityToInstancesd
from nucsam_monai.utils.errors import ConfigurationError
from tests.handlers.tiny_evaluation import evaluator, item, toy_items


def loss_of(entry):
    probability = entry["image"][:1].clamp(1e-6, 1 - 1e-6)
    return F.binary_cross_entropy(probability, entry["label"]).item()


def measure(items, domains, runs=1):
    engine = evaluator(items, [ValidationLoss(nn.BCEWithLogitsLoss(), domains)])
    for _ in range(runs):
        engine.run()
    return engine.state.metrics


@pytest.mark.parametrize("runs", [1, 2])
def test_domains_count_alike(tmp_path, runs):
    items = toy_items(tmp_path)
    metrics = measure(items, ["b", "a"], runs)
    mean_a = sum(loss_of(items[i]) for i in (0, 2, 3)) / 3
    assert metrics["val_loss_a"] == pytest.approx(mean_a, rel=1e-4)
    assert metrics["val_loss_b"] == pytest.approx(loss_of(items[1]), rel=1e-4)
    assert metrics["val_loss"] == pytest.approx((mean_a + loss_of(items[1])) / 2, rel=1e-4)


def test_a_domain_without_images_is_nan_and_left_out(tmp_path):
    metrics = measure(toy_items(tmp_path)[:1], ["a", "b"])
    assert math.isnan(metrics["val_loss_b"])
    assert metrics["val_loss"] == metrics["val_loss_a"]


def test_certain_and_wrong_probabilities_have_a_finite_loss(tmp_path):
    metrics = measure([item("0", "a", [[1, 0]], [[0.0, 1.0]], tmp_path)], ["a"])
    assert 10 < metrics["val_loss"] < 20


def test_a_domain_that_was_not_announced_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="'1': domain 'b'"):
        measure(toy_items(tmp_path), ["a"])


def test_images_of_all_processes_count(tmp_path, monkeypatch):
    """The other process saw two images of domain a with losses of 3 in all."""

    def all_reduce(sums):
        sums += torch.tensor([[3.0, 0.0], [2.0, 0.0]])

    handler = ValidationLoss(nn.BCEWithLogitsLoss(), ["a", "b"])
    items = toy_items(tmp_path)[:2]
    engine = evaluator(items, [])
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    handler.start(engine)
    engine.state.batch = items
    found = ProbabilityToInstancesd("image")
    engine.state.output = [
        {"pred": found({"image": entry["image"][:1]})["image"], "label": entry["label"]} for entry in items
    ]
    handler.add(engine)
    for _ in range(2):  # measuring must not add the other process twice
        handler.finish(engine)
    own_a, own_b = (loss_of(entry) for entry in items)
    assert engine.state.metrics["val_loss_a"] == pytest.approx((own_a + 3) / 3, rel=1e-4)
    assert engine.state.metrics["val_loss_b"] == pytest.approx(own_b, rel=1e-4)
