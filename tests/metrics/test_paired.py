import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nucsam_monai.metrics.paired import compare
from nucsam_monai.metrics.statistics import Bootstrap
from nucsam_monai.utils.errors import ConfigurationError

FEW = Bootstrap(resamples=200)


def table(values, **columns):
    return [
        {"id": str(i), "domain": "a", "pq": value, **{key: cells[i] for key, cells in columns.items()}}
        for i, value in enumerate(values)
    ]


def test_hand_computed_pairs():
    a, b = table([0.5, 0.7, 0.9, 0.4, 0.6]), table([0.4, 0.5, 0.6, 0.0, 0.1])
    found = compare(a, b[::-1], "pq", FEW)
    assert (found.pairs, found.unit, found.skipped_images, found.ties) == (5, "image", 0, 0)
    assert (found.mean_a, found.mean_b) == pytest.approx((0.62, 0.32))
    assert found.mean_difference == pytest.approx(0.3)
    assert found.wilcoxon_p == pytest.approx(
        2 / 2**5
    )  # all five positive: the most extreme of 32 sign patterns
    # mean 0.3, standard deviation sqrt(0.025), t = 0.3 / sqrt(0.025 / 5) = sqrt(18)
    assert found.t_p == pytest.approx(2 * stats.t.sf(math.sqrt(18), df=4))
    assert 0.1 <= found.ci_low < 0.3 < found.ci_high <= 0.5


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12))
def test_swapping_the_evaluations_only_turns_the_sign(pairs):
    a, b = table([x for x, _ in pairs]), table([y for _, y in pairs])
    found, swapped = compare(a, b, "pq", FEW), compare(b, a, "pq", FEW)
    assert swapped.mean_difference == pytest.approx(-found.mean_difference)
    assert (swapped.wilcoxon_p, swapped.t_p) == pytest.approx((found.wilcoxon_p, found.t_p))
    assert (swapped.ci_low, swapped.ci_high) == pytest.approx((-found.ci_high, -found.ci_low), abs=0.25)


def test_equal_evaluations_have_p_one():
    found = compare(table([0.5, 0.6, 0.7]), table([0.5, 0.6, 0.7]), "pq", FEW)
    assert (found.wilcoxon_p, found.t_p, found.mean_difference, found.ties) == (1, 1, 0, 3)
    assert (found.ci_low, found.ci_high) == (0, 0)


def test_same_difference_everywhere():
    found = compare(table([0.75, 0.5, 1.0]), table([0.5, 0.25, 0.75]), "pq", FEW)
    assert found.t_p == 0
    assert found.wilcoxon_p == pytest.approx(0.25)


def test_ties_are_counted_and_dropped_by_wilcoxon():
    a, b = [0.5, 0.6, 0.7, 0.9, 0.3], [0.5, 0.5, 0.5, 0.5, 0.5]
    found = compare(table(a), table(b), "pq", FEW)
    assert found.ties == 1
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(np.subtract(a, b)).pvalue)


def test_images_without_a_value_are_skipped():
    found = compare(table([0.5, math.nan, 0.7, None]), table([0.4, 0.5, math.nan, 0.2]), "pq", FEW)
    assert (found.pairs, found.skipped_images) == (1, 3)
    assert found.mean_difference == pytest.approx(0.1)
    assert all(map(math.isnan, (found.wilcoxon_p, found.t_p, found.ci_low, found.ci_high)))
    nothing = compare(table([math.nan]), table([math.nan]), "pq", FEW)
    assert nothing.pairs == 0
    assert math.isnan(nothing.mean_a)
    assert math.isnan(nothing.mean_difference)
    assert compare([], [], "pq", FEW).pairs == 0


def test_groups_are_averaged_first():
    groups = ["s1", "s1", "s1", "s2", "s2", "s3"]
    a, b = [0.9, 0.8, 0.7, 0.5, 0.7, 0.4], [0.4, 0.3, 0.2, 0.4, 0.6, 0.5]
    found = compare(table(a, group=groups), table(b, group=groups), "pq", FEW)
    assert (found.pairs, found.unit) == (3, "group")
    assert found.mean_difference == pytest.approx((0.5 + 0.1 - 0.1) / 3)
    assert found.t_p == pytest.approx(stats.ttest_1samp([0.5, 0.1, -0.1], 0).pvalue)


def test_images_are_paired_by_domain_and_id():
    a = [{"id": "1", "domain": "x", "pq": 0.9}, {"id": "1", "domain": "y", "pq": 0.5}]
    b = [{"id": "1", "domain": "y", "pq": 0.4}, {"id": "1", "domain": "x", "pq": 0.6}]
    assert compare(a, b, "pq", FEW).mean_difference == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (table([0.1] * 6), table([0.1]), r"5 only in A \(a/1, a/2, a/3, \.\.\.\)"),
        ([{"id": "p", "pq": 1}], [{"id": "q", "pq": 1}], r"1 only in A \(p\) and 1 only in B \(q\)"),
        (table([0.1]) * 2, table([0.1]), "A: image a/0 occurs twice"),
        (
            table([0.1]),
            [{"id": "0", "domain": "a", "dice": 1}],
            "B has no metric 'pq'; its columns are id, domain",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(a, b, message):
    with pytest.raises(ConfigurationError, match=message):
        compare(a, b, "pq", FEW)
