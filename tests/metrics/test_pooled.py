import math

import numpy as np
import pytest
import torch
from monai.metrics import PanopticQualityMetric

from nucsam_monai.metrics import PooledPanopticQuality
from nucsam_monai.utils.errors import ConfigurationError
from tests.metrics.label_maps import pair_of_discs, random_classes
from tests.oracles import metrics_classes as oracle

CLASSES = 3
Image = tuple[np.ndarray, np.ndarray, dict[int, int], dict[int, int]]


def images(count: int, classes: int = CLASSES) -> list[Image]:
    found = []
    for seed in range(count):
        y, y_pred = pair_of_discs(seed, side=64, count=15)
        truth = random_classes(y, classes, seed)
        # most predictions carry the class of their nucleus, whose id they share
        noise = random_classes(y_pred, classes, seed + 50)
        found.append(
            (y, y_pred, truth, {i: noise[i] if i % 3 == 0 else truth.get(i, noise[i]) for i in noise})
        )
    return found


def measured(data: list[Image], classes: int = CLASSES) -> PooledPanopticQuality:
    metric = PooledPanopticQuality(classes)
    for image in data:
        metric.update(*image)
    return metric


def class_map(labels: np.ndarray, classes: dict[int, int]) -> np.ndarray:
    mapped = np.zeros_like(labels)
    for label, class_id in classes.items():
        mapped[labels == label] = class_id + 1
    return mapped


def test_equals_monai() -> None:
    data = images(4)
    metric = PanopticQualityMetric(
        num_classes=CLASSES, metric_name=["pq", "sq", "rq"], reduction="mean_batch"
    )
    for y, y_pred, y_classes, y_pred_classes in data:
        truth = np.stack((y, class_map(y, y_classes)))
        prediction = np.stack((y_pred, class_map(y_pred, y_pred_classes)))
        metric(torch.as_tensor(prediction)[None], torch.as_tensor(truth)[None])
    pq, sq, dq = (values.numpy() for values in metric.aggregate())
    result = measured(data).result()
    # MONAI adds its 1e-6 to counts that it has averaged over the images
    for found, expected in ((result.pq, pq), (result.sq, sq), (result.dq, dq)):
        np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert result.mpq_plus == pytest.approx(pq.mean(), rel=2e-5)


def test_equals_the_sums_of_the_oracle() -> None:
    data = images(5)
    counts = np.array([[oracle.class_panoptic(*image, c)[3:] for c in range(CLASSES)] for image in data]).sum(
        0
    )
    result = measured(data).result()
    np.testing.assert_array_equal(np.stack(result.counts[:3], axis=1), counts)
    tp, fp, fn = counts.T
    np.testing.assert_allclose(result.dq, tp / (tp + fp / 2 + fn / 2))


def test_pooling_by_hand() -> None:
    y = np.array([[1, 1, 1, 1, 0, 0]])
    three_of_four = np.array([[1, 1, 1, 0, 0, 0]])
    metric = PooledPanopticQuality(2)
    metric.update(y, three_of_four, {1: 0}, {1: 0})  # IoU 3/4
    metric.update(np.zeros_like(y), y, {}, {1: 0})  # a false positive where the class is absent counts
    metric.update(y, y, {1: 0}, {1: 0})
    result = metric.result()
    assert result.pq[0] == pytest.approx(2 / 2.5 * 1.75 / 2, abs=1e-6)
    assert math.isnan(result.pq[1])
    assert result.mpq_plus == result.pq[0]


def test_merged_parts_equal_the_whole() -> None:
    data = images(5)
    first, second = measured(data[:2]), measured(data[2:])
    first.merge(second)
    for merged, whole in zip(first.result().counts, measured(data).result().counts, strict=True):
        np.testing.assert_allclose(merged, whole, rtol=1e-12)
    with pytest.raises(ConfigurationError, match="merge"):
        first.merge(PooledPanopticQuality(CLASSES + 1))


def test_nothing_is_nan() -> None:
    assert math.isnan(PooledPanopticQuality(2).result().mpq_plus)
    with pytest.raises(ConfigurationError, match="class_count"):
        PooledPanopticQuality(0)


def test_perfect_prediction_is_one() -> None:
    y = pair_of_discs(0)[0]
    classes = random_classes(y, CLASSES, 0)
    assert measured([(y, y, classes, classes)]).result().mpq_plus == pytest.approx(1, abs=1e-6)
