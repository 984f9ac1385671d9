"""Named metrics and the loss of a validation."""

import math
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.handlers import MetricsSaver, from_engine
from torch import nn
from torch.nn import functional as F

from nucsam_monai.handlers import ValidationLoss
from nucsam_monai.handlers.metrics import NamedMetricsHandler
from nucsam_monai.metrics import foreground_metrics, instance_metrics
from nucsam_monai.metrics import pair as pair_module
from nucsam_monai.metrics.cumulative import ForegroundMetric, InstanceSegmentationMetric
from nucsam_monai.transforms import ProbabilityToInstancesd
from nucsam_monai.utils.errors import ConfigurationError
from tests.handlers.tiny_evaluation import evaluator, item, toy_items


class ShiftByOne(torch.nn.Module):
    """A network whose predicted instances are its input, one pixel to the right."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.roll(image, 1, dims=-1)


def label_maps(count: int = 3) -> list[np.ndarray]:
    maps = [np.zeros((1, 16, 16), np.int32) for _ in range(count)]
    for index, labels in enumerate(maps):
        labels[0, 2 : 6 + index, 2:7] = 1
        labels[0, 10:13, 8:13] = 70_000
    return maps


def evaluator_of(maps: list[np.ndarray], key: dict | None, handlers: list) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader([{"image": m, "label": m} for m in maps], batch_size=2),
        network=ShiftByOne(),
        key_val_metric=key,
        val_handlers=handlers,
    )


KEYS = ("pred", "label")


def test_one_handler_reports_every_name_from_one_table_per_image() -> None:
    maps = label_maps()
    handler = NamedMetricsHandler(InstanceSegmentationMetric(), keys=KEYS)
    evaluator = evaluator_of(maps, {"val_pq": handler}, [NamedMetricsHandler(ForegroundMetric(), keys=KEYS)])
    with patch.object(pair_module, "label_runs", wraps=pair_module.label_runs) as counted:
        evaluator.run()
    assert counted.call_count == len(maps)

    rows = np.array([instance_metrics(m[0], np.roll(m[0], 1, 1)) for m in maps])
    metrics, details = evaluator.state.metrics, evaluator.state.metric_details
    for index, name in enumerate(InstanceSegmentationMetric.columns):
        assert metrics[f"val_{name}"] == pytest.approx(rows[:, index].mean(), abs=1e-12)
        np.testing.assert_array_equal(details[f"val_{name}"].numpy(), rows[:, index])
    assert metrics["val_skipped_images"] == 0
    hd95 = [foreground_metrics(m[0], np.roll(m[0], 1, 1)).hd95 for m in maps]
    np.testing.assert_array_equal(details["val_hd95"].numpy(), hd95)
    assert 0 < metrics["val_f1_mean_pr"] < 1
    assert all(isinstance(value, float) for value in metrics.values())
    assert set(metrics) == {f"val_{n}" for n in (*InstanceSegmentationMetric.names, *ForegroundMetric.names)}


def test_the_key_metric_selects_the_best_epoch() -> None:
    handler = NamedMetricsHandler(InstanceSegmentationMetric(), keys=KEYS)
    evaluator = evaluator_of(label_maps(), {"val_aji": handler}, [])
    evaluator.run()
    assert evaluator.state.key_metric_name == "val_aji"
    assert evaluator.state.best_metric == evaluator.state.metrics["val_aji"] > 0


def test_every_run_starts_afresh() -> None:
    evaluator = evaluator_of(
        label_maps(), None, [NamedMetricsHandler(InstanceSegmentationMetric(), keys=KEYS)]
    )
    evaluator.run()
    first = dict(evaluator.state.metrics)
    evaluator.run()
    assert evaluator.state.metrics == first
    assert len(evaluator.state.metric_details["val_aji"]) == 3


def test_the_first_value_has_a_mean_of_every_domain() -> None:
    handler = NamedMetricsHandler(ForegroundMetric(), keys=KEYS, by_domain=True)
    engine = evaluator_of(label_maps(), None, [])
    for entry, domain in zip(engine.data_loader.dataset, "bab", strict=True):
        entry["domain"] = domain
    handler.attach(engine)
    for _ in range(2):  # nothing is left of the first run
        engine.run()
    dice = engine.state.metric_details["val_dice"]
    found = {name: value for name, value in engine.state.metrics.items() if name.startswith("val_dice_")}
    assert found == {"val_dice_a": dice[1], "val_dice_b": (dice[0] + dice[2]) / 2}


def test_output_transform_and_prefix() -> None:
    handler = NamedMetricsHandler(
        InstanceSegmentationMetric(), output_transform=from_engine(["label", "label"]), prefix="test/"
    )
    evaluator = evaluator_of(label_maps(), None, [handler])
    evaluator.run()
    assert evaluator.state.metrics["test/aji"] == 1.0


def test_a_name_that_the_metric_does_not_have_is_refused() -> None:
    handler = NamedMetricsHandler(ForegroundMetric(), keys=KEYS)
    with pytest.raises(ConfigurationError, match="'val_aji', reports val_dice"):
        evaluator_of(label_maps(), {"val_aji": handler}, [])


def test_rows_reach_the_csv_of_metrics_saver(tmp_path: Path) -> None:
    handlers = [
        NamedMetricsHandler(InstanceSegmentationMetric(), keys=KEYS),
        MetricsSaver(
            str(tmp_path),
            metric_details=["val_aji"],
            batch_transform=lambda batch: [{"filename_or_obj": "image.png"} for _ in batch],
        ),
    ]
    evaluator_of(label_maps(), None, handlers).run()
    assert len((tmp_path / "val_aji_raw.csv").read_text().splitlines()) == 1 + 3
    assert "val_pq" in (tmp_path / "metrics.csv").read_text()


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
