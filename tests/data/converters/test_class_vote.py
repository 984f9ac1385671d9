import numpy as np
import pytest

from nucsam_monai.data.converters.class_vote import majority_values
from nucsam_monai.utils.errors import DatasetError


def test_every_instance_gets_the_value_of_most_of_its_pixels() -> None:
    instances, values = np.array([[9, 9, 9, 2]]), np.array([[4, 5, 5, 1]])
    assert majority_values(instances, values, "a") == {2: 1, 9: 5}


def test_an_instance_without_a_class_is_named() -> None:
    with pytest.raises(DatasetError, match=r"a\.png: 2 instances have no class, first 3"):
        majority_values(np.array([[1, 4, 3]]), np.array([[1, 0, 0]]), "a.png")


def test_maps_of_different_shape_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"a\.png: class map is \(4, 8\), instance map is \(8, 8\)"):
        majority_values(np.zeros((8, 8), int), np.zeros((4, 8), int), "a.png")
