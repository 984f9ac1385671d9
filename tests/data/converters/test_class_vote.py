import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nucsam_monai.data.converters.class_vote import majority_values
from nucsam_monai.utils.errors import DatasetError

SMALL = arrays(np.uint16, (4, 5), elements=st.integers(0, 4))


def test_background_does_not_vote_and_ties_go_to_the_lower_value() -> None:
    instances = np.array([[9, 9, 9, 9, 0], [2, 2, 0, 70_000, 70_000]])
    values = np.array([[0, 0, 0, 5, 5], [3, 1, 1, 6, 6]], np.uint8)
    assert majority_values(instances, values, "a") == {2: 1, 9: 5, 70_000: 6}


@given(instances=SMALL, values=SMALL)
def test_against_counting_one_by_one(instances: np.ndarray, values: np.ndarray) -> None:
    expected = {}
    for instance_id in set(instances[instances > 0].tolist()):
        votes = [value for value in values[instances == instance_id].tolist() if value]
        if votes:
            expected[instance_id] = min(votes, key=lambda value: (-votes.count(value), value))
    if set(expected) == set(instances[instances > 0].tolist()):
        assert majority_values(instances, values, "a") == expected
    else:
        with pytest.raises(DatasetError, match="have no class"):
            majority_values(instances, values, "a")


def test_maps_of_different_shape_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"a\.png: class map is \(4, 8\), instance map is \(8, 8\)"):
        majority_values(np.zeros((8, 8), int), np.zeros((4, 8), int), "a.png")
