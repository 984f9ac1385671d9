import logging
import math
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import MetaTensor

from nucsam_monai.handlers import NamedMetricsHandler
from nucsam_monai.metrics import (
    GreedyDetection,
    f1_mean_pr,
    foreground_metrics,
    instance_metrics,
    mask_ious,
    smoothed_overlap,
    threshold_mean,
    weighted_scores,
)
from nucsam_monai.metrics.cumulative import (
    ClassForegroundMetric,
    FiveThresholdsMetric,
    ForegroundMetric,
    InstanceSegmentationMetric,
    LabelMapMetric,
    PointDetectionMetric,
    PromptedMaskMetric,
    WeightedForegroundMetric,
    WorkingSizeMetric,
)
from nucsam_monai.utils.errors import ConfigurationError
from tests.metrics.label_maps import pair_of_discs

METRICS = [InstanceSegmentationMetric, ForegroundMetric, WeightedForegroundMetric]


def pairs(count: int, side: int = 32) -> list[list[np.ndarray]]:
    return [pair_of_discs(seed, side, count=5) for seed in range(count)]


def batch_of(maps: list[np.ndarray], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.as_tensor(np.stack(maps)[:, None]).to(dtype)


def fed(metric: LabelMapMetric, images: list[list[np.ndarray]]) -> LabelMapMetric:
    metric(y_pred=batch_of([y_pred for _, y_pred in images]), y=batch_of([y for y, _ in images]))
    return metric


def test_classes_have_their_own_columns_and_images_their_mean() -> None:
    (y, y_pred), (whole, whole_pred) = pairs(2)
    masks, masks_pred = ([maps % 2 == 1, (maps % 2 == 0) & (maps > 0)] for maps in (y, y_pred))
    absent = np.full((2, 32, 32), -1)
    metric = ClassForegroundMetric(["a", "b"])
    truth = [np.stack([y, *masks]), np.concatenate([whole[None], absent])]
    found = [np.stack([y_pred, *masks_pred]), np.concatenate([whole_pred[None], absent])]
    metric(y_pred=list(map(torch.as_tensor, found)), y=list(map(torch.as_tensor, truth)))
    rows = metric.rows().reshape(2, 3, -1)
    of_class = [foreground_metrics(one, other) for one, other in zip(masks, masks_pred, strict=True)]
    np.testing.assert_array_equal(rows[0], [np.mean(of_class, axis=0), *of_class])
    np.testing.assert_array_equal(rows[1, 0], foreground_metrics(whole, whole_pred))
    assert np.isnan(rows[1, 1:]).all()
    means = metric.aggregate()
    assert means["dice_a"] == of_class[0].dice
    assert means["dice"] == pytest.approx(rows[:, 0, 0].mean())
    with pytest.raises(ConfigurationError, match=r"expected y_pred and y as lists of \(3, H, W\)"):
        metric(y_pred=[torch.zeros(1, 4, 4)], y=[torch.zeros(1, 4, 4)])


def test_rows_and_means_are_those_of_the_functions() -> None:
    images = pairs(3)
    instance, foreground = fed(InstanceSegmentationMetric(), images), fed(ForegroundMetric(), images)
    instance_rows = np.array([instance_metrics(*image)[:5] for image in images])
    foreground_rows = np.array([foreground_metrics(*image) for image in images])
    np.testing.assert_array_equal(instance.get_buffer().numpy(), instance_rows)
    np.testing.assert_array_equal(foreground.get_buffer().numpy(), foreground_rows)
    means = dict(zip(instance.columns, instance_rows.mean(0), strict=True))
    assert instance.aggregate() == pytest.approx({**means, "skipped_images": 0})
    means = dict(zip(foreground.columns, foreground_rows.mean(0), strict=True))
    f1 = f1_mean_pr(foreground_rows[:, 2], foreground_rows[:, 3])
    assert foreground.aggregate() == pytest.approx({**means, "f1_mean_pr": f1})


def test_weighted_rows_and_means_are_those_of_the_function() -> None:
    images = pairs(3)
    metric = fed(WeightedForegroundMetric(), images)
    rows = np.array([weighted_scores(*image) for image in images])
    np.testing.assert_array_equal(metric.rows(), rows)
    assert metric.aggregate() == pytest.approx(dict(zip(metric.columns, rows.mean(0), strict=True)))


def test_five_thresholds_are_those_of_the_function() -> None:
    truth, probability = pairs(1)[0][0], np.random.default_rng(0).random((32, 32)).astype(np.float32)
    metric = FiveThresholdsMetric()
    metric(y_pred=torch.from_numpy(probability)[None, None], y=batch_of([truth]))
    assert tuple(metric.rows()[0]) == threshold_mean(truth, probability)


def test_at_the_images_own_size_only_the_smoothing_is_another() -> None:
    truth, prediction = pairs(1)[0]
    smooth = fed(WorkingSizeMetric(None, 1.0), [[truth, (prediction > 0).astype(np.int32)]]).aggregate()
    plain = foreground_metrics(truth, prediction)
    assert (smooth["dice_smooth1"], smooth["iou_smooth1"]) == smoothed_overlap(truth, prediction)
    assert [smooth[name] for name in ("precision", "recall", "hd", "hd95")] == list(plain[2:])


def test_distances_are_those_of_the_stretched_image() -> None:
    truth, prediction = np.zeros((2, 8, 16), dtype=np.int32)
    truth[:, 2:6] = 3
    prediction[:, 4:8] = 1
    metric = fed(WorkingSizeMetric(32, None), [[truth, prediction]]).aggregate()
    assert metric["hd_32px"] == 2 * 32 / 16  # two columns, each of which is two pixels wide now
    assert metric["dice_32px"] == foreground_metrics(truth, prediction).dice == 0.5


@pytest.mark.parametrize("metric_type", METRICS)
def test_names_are_those_of_the_aggregate(metric_type: type[LabelMapMetric]) -> None:
    assert tuple(fed(metric_type(), pairs(1)).aggregate()) == metric_type.names


def test_decollated_lists_of_different_sizes() -> None:
    images = [pair_of_discs(0, 24, count=4), pair_of_discs(1, 40, count=4)]
    metric = InstanceSegmentationMetric()
    metric(
        y_pred=[MetaTensor(torch.as_tensor(y_pred)[None]) for _, y_pred in images],
        y=[torch.as_tensor(y.astype(np.uint16))[None] for y, _ in images],
    )
    np.testing.assert_array_equal(metric.rows(), [instance_metrics(*image)[:5] for image in images])


def test_images_without_nuclei_are_skipped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    (y, y_pred), empty = pairs(1)[0], np.zeros((32, 32), np.int32)
    metric = fed(InstanceSegmentationMetric(), [(y, y_pred), (empty, y_pred), (empty, empty)])
    with caplog.at_level(logging.WARNING):
        found = metric.aggregate()
    assert found["aji"] == instance_metrics(y, y_pred).aji
    assert found["skipped_images"] == 2
    assert "2 of 3 images have no nuclei" in caplog.text


def test_nothing_but_skipped_images_is_nan() -> None:
    empty = np.zeros((8, 8), np.int32)
    found = fed(InstanceSegmentationMetric(), [(empty, empty)]).aggregate()
    assert math.isnan(found["pq"])
    assert found["skipped_images"] == 1


def test_the_threshold_reaches_panoptic_quality() -> None:
    y, y_pred = np.array([[1, 1, 1]]), np.array([[1, 1, 0]])
    assert fed(InstanceSegmentationMetric(match_iou=0.7), [(y, y_pred)]).aggregate()["dq"] == 0
    assert fed(InstanceSegmentationMetric(match_iou=0.6), [(y, y_pred)]).aggregate()["dq"] == 1


@pytest.mark.parametrize("metric_type", METRICS)
def test_reset_forgets(metric_type: type[LabelMapMetric]) -> None:
    metric = fed(metric_type(), pairs(1))
    metric.reset()
    with pytest.raises(ConfigurationError, match="no image was measured"):
        metric.aggregate()


MAPS = torch.ones((2, 1, 4, 4), dtype=torch.int64)


@pytest.mark.parametrize(
    ("y_pred", "y", "words"),
    [
        (MAPS, MAPS[:, 0], r"\(2, 1, 4, 4\) and \(2, 4, 4\)"),
        (MAPS.repeat(1, 2, 1, 1), MAPS.repeat(1, 2, 1, 1), "one-hot"),
        (MAPS, MAPS[:1], r"\(2, 1, 4, 4\) and \(1, 1, 4, 4\)"),
        (MAPS, None, "None"),
        (list(MAPS), list(MAPS[:1]), "2 predictions and 1 ground truths"),
        (list(MAPS), None, "2 predictions and 0 ground truths"),
        (MAPS.float(), MAPS, "float32"),
    ],
)
def test_wrong_batches_are_refused(y_pred: torch.Tensor, y: torch.Tensor, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        InstanceSegmentationMetric()(y_pred=y_pred, y=y)


def measure_on_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    metric = fed(InstanceSegmentationMetric(), pairs(3)[:1] if rank else pairs(3)[1:])
    np.save(folder / f"{rank}.npy", [*metric.aggregate().values(), len(metric)])
    dist.destroy_process_group()


def test_two_processes_average_over_all_images(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=measure_on_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=60)
    assert [process.exitcode for process in ranks] == [0, 0]
    expected = [*fed(InstanceSegmentationMetric(), pairs(3)).aggregate().values(), 3]
    for rank in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"{rank}.npy"), expected, rtol=0, atol=1e-12)


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


MASKS = hnp.arrays(np.bool_, st.tuples(st.just(2), st.integers(0, 3), st.integers(1, 5), st.integers(1, 5)))


def slow_iou(true, found):
    first, second = ({tuple(pixel) for pixel in np.argwhere(mask)} for mask in (true, found))
    return len(first & second) / len(first | second) if first | second else 1.0


@settings(max_examples=60, deadline=None)
@given(MASKS, st.sampled_from([bool, np.uint8, np.float32]))
def test_ious_are_those_of_the_sets_of_pixels(pair, kind):
    expected = [slow_iou(true, found) for true, found in zip(*pair, strict=True)]
    np.testing.assert_allclose(mask_ious(pair[0].astype(kind), pair[1]), expected)


def test_stacks_of_different_shapes_are_refused():
    for other in (np.zeros((2, 3, 3)), np.zeros((3, 3))):
        with pytest.raises(ConfigurationError, match="two stacks of one shape"):
            mask_ious(np.zeros((1, 3, 3)), other)


def test_images_count_alike_and_those_without_prompts_not_at_all():
    right, half = torch.tensor([[[1, 1]]]), torch.tensor([[[1, 0]]])
    metric = PromptedMaskMetric()
    metric(y_pred=[torch.cat([right, right]), right[:0]], y=[torch.cat([right, half]), right[:0]])
    metric(y_pred=[half], y=[right])
    np.testing.assert_array_equal(metric.rows()[:, 0], [0.75, np.nan, 0.5])
    assert metric.aggregate() == {"mask_iou": 0.625, "jaccard_distance": 0.375}


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ConfigurationError, match="one mask per prompt"):
        PromptedMaskMetric()(y_pred=[torch.zeros(2, 4, 4)], y=[torch.zeros(3, 4, 4)])
