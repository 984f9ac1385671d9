from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.engines import domain_schedule
from nucsam_monai.engines.domain_schedule import DomainBatchSampler
from nucsam_monai.utils.errors import ConfigurationError, DatasetError

DOMAINS = ("a", "b", "c")
SCHEDULES = st.sampled_from(["sequential", "interleaved"])
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=3)


def items(sizes):
    """Items of several domains, not sorted by domain."""
    domains = [name for name, size in zip(DOMAINS, sizes, strict=False) for _ in range(size)]
    return [{"domain": name} for name in domains[::2] + domains[1::2]]


def sampler(sizes, batch_size=2, epochs=3, **options):
    return DomainBatchSampler(items(sizes), DOMAINS[: len(sizes)], batch_size, epochs, **options)


def batches(source, epoch):
    source.set_epoch(epoch)
    return list(source)


def domains_of(sizes, batch):
    return {items(sizes)[index]["domain"] for index in batch}


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(1, 3), SCHEDULES)
def test_an_epoch_takes_every_image_of_its_domains_once(sizes, batch_size, epochs, schedule):
    source = sampler(sizes, batch_size, epochs, schedule=schedule)
    for epoch in range(source.total_epochs):
        drawn = batches(source, epoch)
        assert len(drawn) == len(source)
        assert all(len(batch) <= batch_size for batch in drawn)
        assert all(len(domains_of(sizes, batch)) == 1 for batch in drawn)
        active = source.domain_of_epoch(epoch)
        names = DOMAINS[: len(sizes)] if active is None else [DOMAINS[active]]
        expected = [index for index, item in enumerate(items(sizes)) if item["domain"] in names]
        assert sorted(index for batch in drawn for index in batch) == expected


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(1, 25), SCHEDULES)
def test_more_samples_than_images_repeat_them_evenly(sizes, batch_size, samples, schedule):
    source = sampler(sizes, batch_size, 1, schedule=schedule, samples_per_epoch=samples)
    for epoch in range(source.total_epochs):
        drawn = batches(source, epoch)
        assert len(drawn) == len(source)
        times = Counter(index for batch in drawn for index in batch)
        for domain, size in enumerate(sizes):
            if source.domain_of_epoch(epoch) in (None, domain):
                own = [times[i] for i, item in enumerate(items(sizes)) if item["domain"] == DOMAINS[domain]]
                assert sum(own) == samples
                assert max(own) - min(own) <= 1
                assert len(own) == size


def test_sequential_training_takes_the_domains_in_order():
    source = sampler([5, 2, 3])
    assert source.total_epochs == 9
    assert [source.domain_of_epoch(epoch) for epoch in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [epoch for epoch in range(9) if source.starts_domain(epoch)] == [0, 3, 6]
    lengths = []
    for epoch in range(9):
        source.set_epoch(epoch)
        lengths.append(len(source))
    assert lengths == [3, 3, 3, 1, 1, 1, 2, 2, 2]


def test_order_of_domains_is_that_of_the_list_and_other_domains_are_left_out():
    source = DomainBatchSampler(items([2, 2, 2]), ["c", "a"], 2, 1)
    assert [domains_of([2, 2, 2], batch) for epoch in (0, 1) for batch in batches(source, epoch)] == [
        {"c"},
        {"a"},
    ]


def test_interleaved_training_mixes_the_domains():
    sizes = [40, 40, 40]
    source = sampler(sizes, schedule="interleaved")
    assert source.total_epochs == 3
    assert [source.domain_of_epoch(epoch) for epoch in range(3)] == [None] * 3
    assert not any(source.starts_domain(epoch) for epoch in range(3))
    order = [domains_of(sizes, batch).pop() for batch in batches(source, 0)]
    assert Counter(order) == {"a": 20, "b": 20, "c": 20}
    assert sum(one != other for one, other in pairwise(order)) > 20


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), SCHEDULES)
def test_batches_depend_on_seed_and_epoch_alone(seed, epoch, schedule):
    uninterrupted = sampler([9, 9], seed=seed, schedule=schedule)
    for earlier in range(epoch):
        batches(uninterrupted, earlier)
    resumed = sampler([9, 9], seed=seed, schedule=schedule)
    assert batches(resumed, epoch) == batches(uninterrupted, epoch) == batches(uninterrupted, epoch)


def test_other_seeds_and_epochs_give_other_orders():
    orders = {
        str(batches(sampler([9], epochs=9, seed=seed), epoch)) for seed in range(4) for epoch in range(4)
    }
    assert len(orders) == 16


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 3), st.integers(1, 4), SCHEDULES)
def test_processes_share_the_steps(sizes, batch_size, processes, schedule):
    with pytest.MonkeyPatch.context() as patch:
        shares = []
        for rank in range(processes):
            patch.setattr(domain_schedule, "rank_and_processes", lambda rank=rank: (rank, processes))
            source = sampler(sizes, batch_size, schedule=schedule)
            shares.append(batches(source, 0))
            assert len(source) == len(shares[-1])
    for step in zip(*shares, strict=True):
        assert len({len(batch) for batch in step}) == 1  # nobody waits
        assert len(step[0]) <= batch_size
        assert len(set.union(*(domains_of(sizes, batch) for batch in step))) == 1
    drawn = Counter(index for batches_ in shares for batch in batches_ for index in batch)
    active = DOMAINS[: len(sizes)] if schedule == "interleaved" else DOMAINS[:1]
    assert set(drawn) == {i for i, item in enumerate(items(sizes)) if item["domain"] in active}
    assert drawn.total() - len(drawn) < processes * len(active)  # only a last batch is filled up


def test_rank_and_number_of_processes_come_from_torch(monkeypatch):
    monkeypatch.setattr(domain_schedule.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(domain_schedule.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(domain_schedule.dist, "get_world_size", lambda: 3)
    assert domain_schedule.rank_and_processes() == (1, 3)


def test_wrong_values_are_refused():
    with pytest.raises(
        ConfigurationError, match="schedule 'random': expected one of sequential, interleaved, mixed"
    ):
        sampler([1], schedule="random")
    for options in ({"batch_size": 0}, {"epochs": 0}, {"samples_per_epoch": 0}):
        with pytest.raises(ConfigurationError, match="expected at least 1"):
            sampler([1], **options)
    with pytest.raises(DatasetError, match="domain 'd': no training images"):
        DomainBatchSampler(items([1]), ["a", "d"], 1, 1)
    for domains in ([], ["a", "a"]):
        with pytest.raises(ConfigurationError, match="domains: expected different names"):
            DomainBatchSampler(items([1]), domains, 1, 1)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 4), st.one_of(st.none(), st.integers(1, 25)))
def test_mixed_batches_are_drawn_from_all_images(sizes, batch_size, samples):
    source = sampler(sizes, batch_size, 2, schedule="mixed", samples_per_epoch=samples)
    assert source.total_epochs == 2
    for epoch in range(2):
        drawn = batches(source, epoch)
        assert len(drawn) == len(source)
        assert sorted(len(batch) for batch in drawn)[1:] == [batch_size] * (len(drawn) - 1)
        times = Counter(index for batch in drawn for index in batch)
        assert sum(times.values()) == (samples or sum(sizes))
        every = [times[index] for index in range(sum(sizes))]
        assert max(every) - min(every) <= 1
        assert source.domain_of_epoch(epoch) is None
        assert batches(source, epoch) == drawn


def test_mixed_batches_hold_several_domains():
    assert any(
        len(domains_of([9, 9], batch)) == 2 for batch in batches(sampler([9, 9], 6, schedule="mixed"), 0)
    )


def test_weights_are_how_often_each_image_is_drawn():
    weights = [1.0, 2.0, 3.0, 4.0, 10.0]
    source = sampler([5], schedule="mixed", samples_per_epoch=4000, weights=weights)
    drawn = batches(source, 0)
    assert (len(drawn), len(source)) == (2000, 2000)
    times = Counter(index for batch in drawn for index in batch)
    for index, weight in enumerate(weights):
        assert times[index] == pytest.approx(4000 * weight / 20, abs=4 * (4000 * weight / 20) ** 0.5)


def test_weights_count_inside_a_domain_where_batches_hold_one():
    own = items([2, 2])  # a, b, a, b
    weights = [3.0, 500.0, 1.0, 500.0]
    source = DomainBatchSampler(
        own, DOMAINS[:2], 2, 1, schedule="interleaved", samples_per_epoch=2000, weights=weights
    )
    times = Counter(index for batch in batches(source, 0) for index in batch)
    assert times[0] + times[2] == times[1] + times[3] == 2000
    names = [item["domain"] for item in own]
    first, second = (index for index, name in enumerate(names) if name == "a")
    share = weights[first] / (weights[first] + weights[second])
    assert times[first] / 2000 == pytest.approx(share, abs=0.04)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), st.integers(1, 3))
def test_weighted_batches_follow_from_seed_and_epoch_and_are_shared_by_processes(seed, epoch, processes):
    options = {"schedule": "mixed", "samples_per_epoch": 17, "seed": seed, "weights": list(range(1, 10))}
    whole = batches(sampler([9], 2 * processes, **options), epoch)
    assert whole == batches(sampler([9], 2 * processes, **options), epoch)
    assert whole != batches(sampler([9], 2 * processes, **options), epoch + 1)
    with pytest.MonkeyPatch.context() as patch:
        shares = []
        for rank in range(processes):
            patch.setattr(domain_schedule, "rank_and_processes", lambda rank=rank: (rank, processes))
            source = sampler([9], 2, **options)
            shares.append(batches(source, epoch))
            assert len(source) == len(shares[-1])
    for batch, *own in zip(whole, *shares, strict=True):
        assert len({len(share) for share in own}) == 1  # nobody waits
        together = [index for share in own for index in share]
        assert Counter(together) >= Counter(batch)
        assert len(together) - len(batch) < processes


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0] * 3])
def test_weights_that_are_not_one_positive_number_per_item_are_refused(weights):
    with pytest.raises(ConfigurationError, match="weights: expected 2 positive numbers"):
        sampler([2], weights=weights)
