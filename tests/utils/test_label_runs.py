import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nucsam_monai.utils.label_runs import majority_values

SMALL = arrays(np.uint16, (4, 5), elements=st.integers(0, 4))


def test_background_does_not_vote_and_ties_go_to_the_lower_value() -> None:
    instances = np.array([[9, 9, 9, 9, 0], [2, 2, 0, 70_000, 70_000]])
    values = np.array([[0, 0, 0, 5, 5], [3, 1, 1, 6, 6]], np.uint8)
    assert majority_values(instances, values) == {2: 1, 9: 5, 70_000: 6}


def test_ids_and_values_may_have_any_size() -> None:
    instances = np.array([[2**63 + 1, 2**63 + 1, 3]], np.uint64)
    values = np.array([[2**40, 7, 2**62]])
    assert majority_values(instances, values) == {2**63 + 1: 7, 3: 2**62}


def test_maps_without_votes_give_nothing() -> None:
    for shape in ((0, 3), (3, 0), (2, 2)):
        assert majority_values(np.ones(shape, int), np.zeros(shape, int)) == {}


@given(instances=SMALL, values=SMALL)
def test_against_counting_one_by_one(instances: np.ndarray, values: np.ndarray) -> None:
    expected = {}
    for instance_id in set(instances[instances > 0].tolist()):
        votes = [value for value in values[instances == instance_id].tolist() if value]
        if votes:
            expected[instance_id] = min(votes, key=lambda value: (-votes.count(value), value))
    assert majority_values(instances, values) == expected
