import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.metrics import statistics as module
from nucsam_monai.metrics.statistics import (
    Bootstrap,
    Statistic,
    estimate,
    f1_mean_pr_statistic,
    mean_statistic,
    metric_columns,
    percentile_interval,
    resampled_sums,
    sum_by_unit,
)
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles.bootstrap_slow import bootstrap_interval_of_mean

FEW = Bootstrap(resamples=300)


def mean_of(values, units=None, bootstrap=FEW):
    values = np.asarray(values, dtype=float)
    return estimate([mean_statistic("m", values)], units or range(len(values)), bootstrap)["m"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(0, 5))
def test_interval_is_reproducible_and_holds_the_mean(values, seed):
    found = mean_of(values, bootstrap=Bootstrap(300, seed=seed))
    assert found == mean_of(values, bootstrap=Bootstrap(300, seed=seed))
    assert found.value == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= found.ci_low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.ci_high <= max(values) + 1e-9


def test_interval_equals_resampling_by_loops():
    rng = np.random.default_rng(3)
    values = np.where(rng.random(40) < 0.2, np.nan, rng.beta(2, 5, 40))
    units = [f"slide{i % 7}" for i in range(40)]
    for keys in (list(range(40)), units):
        slow = bootstrap_interval_of_mean(values.tolist(), keys, resamples=4000, seed=1)
        found = mean_of(values, keys, Bootstrap(4000))
        assert (found.ci_low, found.ci_high) == pytest.approx(slow, abs=0.01)


def test_coverage_is_about_nominal():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(150):
        found = mean_of(rng.normal(0.6, 0.1, 60), bootstrap=Bootstrap(400, seed=seed))
        hits += found.ci_low <= 0.6 <= found.ci_high
    assert 0.88 <= hits / 150 <= 0.99


def test_order_of_images_does_not_matter():
    values, units = np.array([0.1, 0.9, 0.4, 0.7]), ["d", "a", "c", "b"]
    order = [2, 0, 3, 1]
    shuffled = mean_of(values[order], [units[i] for i in order])
    found = mean_of(values, units)
    assert (shuffled.ci_low, shuffled.ci_high) == pytest.approx((found.ci_low, found.ci_high))


def test_groups_widen_the_interval_of_images_that_resemble_each_other():
    values = np.repeat([0.2, 0.4, 0.6, 0.8], 25)
    by_image = mean_of(values)
    by_group = mean_of(values, [int(i) for i in np.repeat(range(4), 25)])
    assert by_group.ci_high - by_group.ci_low > 3 * (by_image.ci_high - by_image.ci_low)


@pytest.mark.parametrize("values", [[0.5], [0.5, math.nan, math.nan]])
def test_one_measured_image_has_no_interval(values):
    found = mean_of(values)
    assert found.value == 0.5
    assert math.isnan(found.ci_low)
    assert math.isnan(found.ci_high)


@pytest.mark.parametrize("values", [[], [math.nan], [math.nan] * 5])
def test_without_a_value_everything_is_nan(values):
    found = mean_of(values)
    assert all(map(math.isnan, (found.value, found.ci_low, found.ci_high)))


def test_f1_of_means():
    precision, recall = np.array([1.0, 0.5, math.nan]), np.array([0.2, 0.4, 0.6])
    found = estimate([f1_mean_pr_statistic(precision, recall)], range(3), FEW)["f1_mean_pr"]
    assert found.value == pytest.approx(2 * 0.75 * 0.4 / 1.15)
    assert found.ci_low < found.value < found.ci_high
    zero = estimate([f1_mean_pr_statistic(np.zeros(2), np.zeros(2))], range(2), FEW)["f1_mean_pr"]
    assert (zero.value, zero.ci_high) == (0, 0)


def test_several_statistics_share_the_resamples():
    values = np.arange(6.0)
    doubled = Statistic(("twice", "square"), values[:, None], lambda sums: np.hstack([2 * sums, sums**2]))
    found = estimate([mean_statistic("m", values), doubled], range(6), FEW)
    assert list(found) == ["m", "twice", "square"]
    assert (found["twice"].value, found["square"].value) == (30, 225)
    assert found["twice"].ci_low == pytest.approx(12 * found["m"].ci_low)
    assert doubled.of_images([5, 1]).sums.tolist() == [[5], [1]]


def test_blocks_of_resamples_cover_all(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 50)
    totals = resampled_sums(np.ones((20, 3)), Bootstrap(resamples=7))
    np.testing.assert_array_equal(totals, np.full((7, 3), 20.0))


def test_units_are_added_in_the_order_of_their_keys():
    sums = sum_by_unit(np.array([[1.0, 10], [2, 20], [4, 40]]), ["b", "a", "b"])
    np.testing.assert_array_equal(sums, [[2, 20], [5, 50]])


def test_interval_leaves_missing_resamples_out():
    values = np.column_stack([np.arange(101.0), np.full(101, np.nan)])
    values[3:6, 0] = np.nan
    low, high = percentile_interval(values, 0.9)
    assert (low[0], high[0]) == pytest.approx(np.nanpercentile(values[:, 0], [5, 95]))
    assert math.isnan(low[1])
    assert math.isnan(high[1])


@pytest.mark.parametrize("options", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 0}, {"seed": -1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigurationError, match="expected resamples >= 1"):
        Bootstrap(**options)


def test_columns_of_a_table_are_its_numbers():
    rows = [{"id": 3, "pq": 0.5, "note": "x"}, {"id": 4, "pq": None, "aji": np.float32(1), "flag": True}]
    columns = metric_columns(rows, ("id",))
    assert list(columns) == ["pq", "aji"]
    np.testing.assert_array_equal(columns["pq"], [0.5, np.nan])
    np.testing.assert_array_equal(columns["aji"], [np.nan, 1])
