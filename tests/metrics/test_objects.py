import math

import numpy as np
import pytest
from hypothesis import given, settings

from nucsam_monai.metrics import COCO_THRESHOLDS, dice2, object_scores
from nucsam_monai.utils.errors import ConfigurationError
from tests.metrics.label_maps import pair_of_discs, pairs_of_label_maps, random_blocks, relabelled
from tests.oracles import metrics_classes as oracle

THRESHOLDS = (0.1, 0.3, 0.5, 0.6, 0.9, 1.0)


def test_shifted_squares_by_hand() -> None:
    y, y_pred = np.zeros((12, 12), int), np.zeros((12, 12), int)
    y[1:5, 1:5], y_pred[1:5, 2:6] = 4, 9  # IoU 12/20
    y[8:10, 8:10], y_pred[11, :3] = 2, 1
    found = object_scores(y, y_pred, [0.5, 0.6, 0.61])
    assert found.tp.tolist() == [1, 1, 0]  # the threshold itself matches
    assert found.fp.tolist() == found.fn.tolist() == [1, 1, 2]
    assert found.average_precision.tolist() == [1 / 3, 1 / 3, 0]
    assert found.f1.tolist() == [0.5, 0.5, 0]
    assert dice2(y, y_pred) == 24 / 32


def test_equal_halves_match_once() -> None:
    y, y_pred = np.array([[1, 1, 1, 1]]), np.array([[2, 2, 3, 3]])
    for pair in ((y, y_pred), (y_pred, y)):
        assert object_scores(*pair, [0.5]).tp.tolist() == [1]
    assert dice2(y, y_pred) == 2 * (2 + 2) / (6 + 6)


def test_as_many_as_possible_match() -> None:
    # the best pair (1, 8) would leave 2 and 9 without a partner
    y = np.array([[1, 1, 1, 1, 2, 2, 0, 0]])
    y_pred = np.array([[9, 8, 8, 8, 8, 8, 0, 0]])
    assert object_scores(y, y_pred, [0.2]).tp.tolist() == [2]


def test_perfect_prediction_is_one() -> None:
    y = pair_of_discs(0)[0]
    renamed, _ = relabelled(y, 0)
    assert (object_scores(y, renamed).average_precision == 1).all()
    assert len(COCO_THRESHOLDS) == 10
    assert dice2(y, renamed) == 1


@settings(max_examples=60, deadline=None)
@given(pairs_of_label_maps())
def test_equals_the_oracle(pair: tuple[np.ndarray, np.ndarray]) -> None:
    found = object_scores(*pair, THRESHOLDS)
    assert found.tp.tolist() == [oracle.most_matches(*pair, threshold) for threshold in THRESHOLDS]
    assert dice2(*pair) == pytest.approx(oracle.dice2(*pair), nan_ok=True)
    transposed = object_scores(pair[0].T, pair[1].T, THRESHOLDS)
    np.testing.assert_equal(transposed, found)


def test_equals_the_oracle_on_split_and_merged_blocks() -> None:
    rng = np.random.default_rng(5)
    for _ in range(150):
        pair = random_blocks(rng), random_blocks(rng)
        found = object_scores(*pair, THRESHOLDS)
        assert found.tp.tolist() == [oracle.most_matches(*pair, threshold) for threshold in THRESHOLDS]
        assert dice2(*pair) == pytest.approx(oracle.dice2(*pair), nan_ok=True)
        assert (np.diff(found.tp) <= 0).all()


def test_counts_of_images_add_up() -> None:
    first, second = (object_scores(*pair_of_discs(seed)) for seed in (0, 1))
    both = first.plus(second)
    assert (both.tp + both.fn == first.tp + first.fn + second.tp + second.fn).all()
    with pytest.raises(ConfigurationError, match="cannot add"):
        first.plus(object_scores(*pair_of_discs(0), [0.5]))


def test_empties() -> None:
    empty, some = np.zeros((2, 3), int), np.array([[1, 0, 2]] * 2)
    assert np.isnan(object_scores(empty, empty).average_precision).all()
    assert math.isnan(dice2(empty, some))
    assert dice2(some, empty) == 0
    for pair in ((empty, some), (some, empty)):
        assert (object_scores(*pair).average_precision == 0).all()
        assert (object_scores(*pair).f1 == 0).all()


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, math.nan])
def test_impossible_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(ConfigurationError, match="thresholds"):
        object_scores([[1]], [[1]], [0.5, threshold])
