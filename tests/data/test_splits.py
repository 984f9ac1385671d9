import math
from fractions import Fraction
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucsam_monai.data.splits import (
    TRAIN_80_10_10,
    last_fraction,
    random_split,
    shuffled_folds,
    split_counts,
    stratified_shuffle,
)
from nucsam_monai.utils.errors import ConfigurationError

IDS = st.lists(st.text("abcdef0123456789", min_size=1, max_size=6), unique=True, max_size=60)


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (670, (536, 67, 67)),
        (664, (532, 66, 66)),
        (50, (40, 5, 5)),
        (498, (398, 50, 50)),
        (1, (1, 0, 0)),
        (0, (0, 0, 0)),
    ],
)
def test_counts_of_80_10_10(total: int, expected: tuple[int, int, int]) -> None:
    assert tuple(split_counts(total, TRAIN_80_10_10).values()) == expected


@pytest.mark.parametrize("fractions", [{"a": 0.8, "b": 0.1}, {"a": 1.1, "b": -0.1}, {}])
def test_wrong_fractions_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="sum 1"):
        split_counts(10, fractions)


@given(total=st.integers(0, 500), parts=st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any))
def test_counts_are_a_partition_near_the_fractions(total: int, parts: list[int]) -> None:
    fractions = {str(number): Fraction(part, sum(parts)) for number, part in enumerate(parts)}
    counts = split_counts(total, fractions)
    assert sum(counts.values()) == total
    assert min(counts.values()) >= 0
    for name, count in list(counts.items())[1:]:
        assert count <= fractions[name] * total + Fraction(1, 2)


@given(ids=IDS, seed=st.integers(0, 2**32 - 1), data=st.data())
def test_split_is_a_partition_that_ignores_the_order_of_ids(
    ids: list[str], seed: int, data: st.DataObject
) -> None:
    split = random_split(ids, seed=seed)
    assert sorted(chain.from_iterable(split.values())) == sorted(ids)
    assert {name: len(members) for name, members in split.items()} == split_counts(len(ids), TRAIN_80_10_10)
    assert random_split(data.draw(st.permutations(ids)), seed=seed) == split


@given(ids=IDS, seed=st.integers(0, 99), data=st.data())
def test_groups_stay_whole(ids: list[str], seed: int, data: st.DataObject) -> None:
    groups = {sample_id: data.draw(st.sampled_from("xyz")) for sample_id in ids if data.draw(st.booleans())}
    split = random_split(ids, seed=seed, groups=groups)
    assert sorted(chain.from_iterable(split.values())) == sorted(ids)
    homes: dict[str, set[str]] = {}
    for name, members in split.items():
        for sample_id in members:
            if sample_id in groups:
                homes.setdefault(groups[sample_id], set()).add(name)
    assert all(len(names) == 1 for names in homes.values())


def test_split_is_the_documented_permutation() -> None:
    ids = [f"{number:03}" for number in range(670)]
    order = np.random.default_rng(42).permutation(670)
    split = random_split(ids)
    assert split["training"] == sorted(ids[position] for position in order[:536])
    assert split["validation"] == sorted(ids[position] for position in order[536:603])
    assert split["test"] == sorted(ids[position] for position in order[603:])


def test_a_sample_without_a_group_is_not_in_the_group_of_its_name() -> None:
    splits = {
        tuple(map(tuple, random_split(["x", "y"], {"a": 0.5, "b": 0.5}, seed, groups={"y": "x"}).values()))
        for seed in range(8)
    }
    assert splits == {(("x",), ("y",)), (("y",), ("x",))}


def test_repeated_id_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        random_split(["a", "a"])


@pytest.mark.parametrize(("total", "last"), [(13, 2), (30, 5), (37, 6), (3, 0), (0, 0)])
def test_last_fraction_rounds_half_up(total: int, last: int) -> None:
    ids = [f"{number:02}" for number in range(total)]
    rest, tail = last_fraction(reversed(ids), 0.15)
    assert len(tail) == last
    assert rest + tail == ids


def test_last_fraction_refuses_more_than_all() -> None:
    with pytest.raises(ConfigurationError, match="0 to 1"):
        last_fraction(["a"], 15)


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
