from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.handlers import MetricsSaver, from_engine

from nucsam_monai.handlers.metrics import NamedMetricsHandler
from nucsam_monai.metrics import foreground_metrics, instance_metrics
from nucsam_monai.metrics import instance as instance_module
from nucsam_monai.metrics.cumulative import ForegroundMetric, InstanceSegmentationMetric
from nucsam_monai.utils.errors import ConfigurationError


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
    with patch.object(
        instance_module, "contingency_table", wraps=instance_module.contingency_table
    ) as counted:
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
