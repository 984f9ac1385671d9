import math

import numpy as np
import pytest
import torch

from nucsam_monai.handlers import NamedMetricsHandler
from nucsam_monai.metrics import GreedyDetection
from nucsam_monai.metrics.point_detection import PointDetectionMetric
from nucsam_monai.utils.errors import ConfigurationError


def random_images(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        true, found = rng.integers(0, 9, 2)
        y = np.column_stack([rng.uniform(0, 40, (true, 2)), rng.integers(0, 3, true)])
        y_pred = np.column_stack(
            [rng.uniform(0, 40, (found, 2)), rng.integers(0, 3, found), rng.random(found)]
        )
        yield torch.from_numpy(y), torch.from_numpy(y_pred)


def test_it_counts_over_the_dataset_like_the_protocol():
    metric, protocol = PointDetectionMetric(3, radius_px=6), GreedyDetection(3, 6)
    for y, y_pred in random_images(20):
        metric(y_pred=[y_pred], y=[y])
        y, y_pred = y.numpy(), y_pred.numpy()
        protocol.update(y[:, :2], y[:, 2].astype(int), y_pred[:, :2], y_pred[:, 2].astype(int), y_pred[:, 3])
    expected = protocol.result()
    found = metric.aggregate()
    assert tuple(found) == metric.names
    assert [found[name] for name in ("precision", "recall", "f1")] == list(expected.detection[:3])
    assert found["class_f1"] == pytest.approx(np.mean([score.f1 for score in expected.classes]))
    assert metric.rows().shape == (20, len(metric.columns)) == (20, 12)


def test_a_class_that_never_occurs_is_left_out_and_nothing_at_all_is_nan():
    metric = PointDetectionMetric(2, radius_px=6)
    metric(y_pred=[torch.zeros(0, 4)], y=[torch.zeros(0, 3)])
    assert all(math.isnan(value) for value in metric.aggregate().values())
    metric(y_pred=[torch.tensor([[1.0, 1, 0, 1]])], y=[torch.tensor([[1.0, 1, 0]])])
    assert metric.aggregate()["class_f1"] == 1


def test_label_maps_are_refused():
    with pytest.raises(ConfigurationError, match=r"lists of points \(n, 4\)"):
        PointDetectionMetric(1, 6)(y_pred=[torch.zeros(1, 8, 8)], y=[torch.zeros(1, 8, 8)])


def test_its_names_are_those_of_the_handler():
    assert NamedMetricsHandler(PointDetectionMetric(1, 6)).metric_fn.names[2] == "f1"
