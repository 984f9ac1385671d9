import math

import numpy as np
import pytest

from nucsam_monai.data.published_splits import shuffled_folds, stratified_shuffle

COHORTS = ("consep",) * 16 + ("crag",) * 64 + ("dpath",) * 69 + ("glas",) * 84 + ("pannuke",) * 5


def test_folds_of_a_written_out_case() -> None:
    assert [fold.tolist() for fold in shuffled_folds(10, 3, seed=19)] == [[1, 6, 7, 9], [3, 4, 8], [0, 2, 5]]


@pytest.mark.parametrize(("count", "folds", "seed"), [(665, 5, 19), (30, 10, 19), (7, 3, 0), (3, 5, 1)])
def test_folds_take_every_sample_once_and_differ_by_one_at_most(count: int, folds: int, seed: int) -> None:
    drawn = shuffled_folds(count, folds, seed)
    assert sorted(np.concatenate(drawn).tolist()) == list(range(count))
    sizes = [len(fold) for fold in drawn]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize(("count", "folds", "seed"), [(665, 5, 19), (30, 10, 19), (31, 4, 7)])
def test_folds_are_those_of_scikit_learn(count: int, folds: int, seed: int) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    reference = selection.KFold(folds, shuffle=True, random_state=seed).split(np.zeros(count))
    for ours, (_, theirs) in zip(shuffled_folds(count, folds, seed), reference, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_strata_of_a_written_out_case() -> None:
    training, test = stratified_shuffle("aaaaabbbbbccccc", 0.8, seed=5)
    assert (training.tolist(), test.tolist()) == ([0, 1, 2, 4, 6, 7, 8, 9, 10, 11, 12, 14], [3, 5, 13])


@pytest.mark.parametrize("fraction", [0.8, 0.7, 0.5])
def test_strata_keep_their_share(fraction: float) -> None:
    training, test = stratified_shuffle(COHORTS, fraction, seed=5)
    assert sorted([*training.tolist(), *test.tolist()]) == list(range(len(COHORTS)))
    assert len(training) == math.floor(fraction * len(COHORTS))
    for cohort in set(COHORTS):
        share = sum(COHORTS[index] == cohort for index in training)
        assert abs(share - fraction * COHORTS.count(cohort)) <= 1


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fraction", [0.8, 0.7, 0.5])
def test_strata_are_those_of_scikit_learn(fraction: float, seed: int) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    for strata in (COHORTS, tuple("aaabbbbbccccddddd"), COHORTS[5::2]):
        splitter = selection.StratifiedShuffleSplit(10, train_size=fraction, random_state=seed)
        theirs = next(splitter.split(np.zeros(len(strata)), strata))
        for ours, other in zip(stratified_shuffle(strata, fraction, seed), theirs, strict=True):
            np.testing.assert_array_equal(ours, np.sort(other))
