import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.metrics import (
    PanNukeImage,
    binary_panoptic_quality,
    class_panoptic_quality,
    image_mpq,
    pannuke_summary,
    panoptic_quality,
)
from nucsam_monai.utils.errors import ConfigurationError
from tests.metrics.label_maps import pair_of_discs, pairs_of_label_maps, random_classes, relabelled
from tests.oracles import metrics_classes as oracle

CLASSES = 3
NAN = math.nan
PERFECT = 1 / (1 + 1e-6)  # PQ of one nucleus that is found exactly


def image_of(tissue: str, bpq: float, *class_pq: float, fold: str = "") -> PanNukeImage:
    return PanNukeImage(tissue, bpq, np.array(class_pq), fold)


def three_nuclei() -> tuple[np.ndarray, dict[int, int]]:
    labels = np.zeros((6, 20), np.int32)
    labels[1:5, 1:5], labels[1:5, 7:11], labels[1:5, 13:17] = 5, 9, 70_000
    return labels, {5: 0, 9: 0, 70_000: 1}


def test_classes_by_hand() -> None:
    y, y_classes = three_nuclei()
    y_pred = np.zeros_like(y)
    y_pred[1:5, 2:6] = 3  # class 0, one column off: IoU 12/20
    y_pred[1:5, 13:17] = 8  # exact, but of the wrong class 2
    found = class_panoptic_quality(y, y_pred, y_classes, {3: 0, 8: 2}, CLASSES)
    assert found[0] == pytest.approx(1 / (1 + 0 + 0.5) * 0.6 / (1 + 1e-6), abs=1e-15)
    assert found[1] == 0
    assert math.isnan(found[2])  # false positives of an absent class cost nothing
    assert image_mpq(found) == pytest.approx(found[0] / 2)
    assert binary_panoptic_quality(y, y_pred) == pytest.approx(2 / 2.5 * 1.6 / (2 + 1e-6), abs=1e-15)


def test_perfect_prediction_is_one_in_present_classes() -> None:
    y, y_classes = three_nuclei()
    found = class_panoptic_quality(y, y, y_classes, y_classes, CLASSES)
    np.testing.assert_allclose(found, [1, 1, NAN], atol=1e-5)
    assert image_mpq(found) == pytest.approx(1, abs=1e-5)


def test_images_without_nuclei_are_nan() -> None:
    y, classes = three_nuclei()
    empty = np.zeros_like(y)
    assert np.isnan(class_panoptic_quality(empty, y, {}, classes, CLASSES)).all()
    assert math.isnan(image_mpq(class_panoptic_quality(empty, empty, {}, {}, CLASSES)))
    assert math.isnan(binary_panoptic_quality(empty, y))
    assert class_panoptic_quality(y, empty, classes, {}, CLASSES)[:2].tolist() == [0, 0]


@settings(max_examples=60, deadline=None)
@given(pairs_of_label_maps(), st.integers(0, 99))
def test_classes_equal_the_oracle(pair: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    y, y_pred = pair
    classes = random_classes(y, CLASSES, seed), random_classes(y_pred, CLASSES, seed + 1)
    expected = [oracle.class_panoptic(y, y_pred, *classes, c)[2] for c in range(CLASSES)]
    found = class_panoptic_quality(y, y_pred, *classes, CLASSES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert image_mpq(found) == pytest.approx(oracle.mean_of(expected), nan_ok=True)
    np.testing.assert_array_equal(class_panoptic_quality(y.T, y_pred.T, *classes, CLASSES), found)


def test_one_class_is_the_panoptic_quality() -> None:
    y, y_pred = pair_of_discs(0)
    classes = random_classes(y, 1, 0), random_classes(y_pred, 1, 0)
    assert class_panoptic_quality(y, y_pred, *classes, 1)[0] == panoptic_quality(y, y_pred).pq


def test_ids_carry_no_meaning() -> None:
    y, y_pred = pair_of_discs(1)
    y_classes, y_pred_classes = random_classes(y, CLASSES, 0), random_classes(y_pred, CLASSES, 1)
    renamed, new_ids = relabelled(y_pred, 3)
    new_classes = {new: y_pred_classes[old] for old, new in new_ids.items()}
    np.testing.assert_array_equal(
        class_panoptic_quality(y, renamed, y_classes, new_classes, CLASSES),
        class_panoptic_quality(y, y_pred, y_classes, y_pred_classes, CLASSES),
    )


def test_split_and_merged_nuclei_lose_their_match() -> None:
    y, y_classes = three_nuclei()
    split = y.copy()
    split[1:3, 1:5] = 77  # halves of 1/2 IoU each
    merged = np.where(y == 9, 5, y)  # the union has IoU 1/2 with both
    for y_pred in (split, merged):
        found = class_panoptic_quality(y, y_pred, y_classes, {**y_classes, 77: 0}, CLASSES)
        assert found[0] < 0.5
        assert found[1] == PERFECT


@pytest.mark.parametrize(
    ("classes", "words"),
    [({5: 0}, r"2 of 3 instances have no class.*\[9, 70000\]"), ({5: 0, 9: 3, 70_000: -1}, r"\[-1, 3\]")],
)
def test_wrong_classes_are_refused(classes: dict[int, int], words: str) -> None:
    y, good = three_nuclei()
    with pytest.raises(ConfigurationError, match="y_pred_classes: .*" + words):
        class_panoptic_quality(y, y, good, classes, CLASSES)
    with pytest.raises(ConfigurationError, match="class_count"):
        class_panoptic_quality(y, y, good, good, 0)


def test_two_tissues_and_an_absent_class_by_hand() -> None:
    summary = pannuke_summary(
        [
            image_of("Breast", 0.8, 0.6, NAN, 0.2),  # mPQ 0.4
            image_of("Breast", 0.6, 0.8, NAN, NAN),  # mPQ 0.8
            image_of("Breast", NAN, NAN, NAN, NAN),  # no nuclei
            image_of("Liver", 0.4, NAN, NAN, 0.1),  # mPQ 0.1
        ]
    )
    assert [row.tissue for row in summary.tissues] == ["Breast", "Liver"]
    assert [(row.images, row.images_with_nuclei) for row in summary.tissues] == [(3, 2), (1, 1)]
    assert summary.tissues[0].bpq == pytest.approx(0.7)
    assert summary.tissues[0].mpq == pytest.approx(0.6)
    assert summary.bpq.tissue_mean == pytest.approx((0.7 + 0.4) / 2)
    assert summary.bpq.global_mean == pytest.approx((0.8 + 0.6 + 0.4) / 3)
    assert summary.mpq.tissue_mean == pytest.approx((0.6 + 0.1) / 2)
    assert summary.mpq.global_mean == pytest.approx((0.4 + 0.8 + 0.1) / 3)
    np.testing.assert_allclose(summary.class_pq, [0.7, NAN, 0.15])
    assert (summary.images, summary.images_without_nuclei, summary.folds) == (4, 1, ("",))
    assert math.isnan(summary.bpq.fold_std)
    assert summary.bpq.tissue_std == pytest.approx(0.3 / math.sqrt(2))


def test_folds_count_equally_whatever_their_size() -> None:
    summary = pannuke_summary(
        [
            image_of("Skin", 0.2, 0.2, fold="1"),
            image_of("Skin", 0.4, 0.4, fold="1"),
            image_of("Lung", 0.9, 0.9, fold="1"),
            image_of("Skin", 0.7, 0.5, fold="2"),
        ]
    )
    lung, skin = summary.tissues
    assert skin.bpq == pytest.approx((0.3 + 0.7) / 2)
    assert lung.bpq == pytest.approx(0.9)  # only one fold shows it
    assert summary.bpq.tissue_mean == pytest.approx((0.5 + 0.9) / 2)
    assert summary.bpq.global_mean == pytest.approx((0.5 + 0.7) / 2)
    assert summary.bpq.fold_std == pytest.approx(np.std([0.6, 0.7], ddof=1))
    assert summary.class_pq[0] == pytest.approx((0.5 + 0.5) / 2)
    assert summary.class_pq_fold_std[0] == pytest.approx(0)


def test_a_tissue_without_nuclei_is_left_out() -> None:
    summary = pannuke_summary([image_of("Skin", 0.5, 0.5), image_of("Lung", NAN, NAN)])
    assert summary.bpq.tissue_mean == 0.5
    assert math.isnan(summary.tissues[0].mpq)


def test_a_data_set_without_nuclei_is_nan() -> None:
    summary = pannuke_summary([image_of("Skin", NAN, NAN)])
    assert math.isnan(summary.mpq.tissue_mean)
    assert summary.images_without_nuclei == summary.images == 1


def test_nothing_to_summarise_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one image"):
        pannuke_summary([])
    with pytest.raises(ConfigurationError, match="equally many per image"):
        pannuke_summary([image_of("Skin", 0.5, 0.5), image_of("Skin", 0.5, 0.5, 0.5)])
