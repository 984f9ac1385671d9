import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.prediction import NUCLEUS_DTYPE, prediction_from_instances
from tests.oracles.nucleus_measurements import measure_nuclei

label_maps = hnp.arrays(
    st.sampled_from([np.uint16, np.int32, np.int64]),
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.sampled_from([0, 0, 1, 2, 3, 9, 500, 65_535]),
)


@settings(max_examples=200, deadline=None)
@given(label_maps)
def test_measurements_equal_the_slow_ones(instances: np.ndarray) -> None:
    prediction = prediction_from_instances(instances)
    expected = measure_nuclei(instances)
    assert prediction.table.dtype == NUCLEUS_DTYPE
    assert len(prediction) == len(expected)
    for row, slow in zip(prediction.table, expected, strict=True):
        for name, value in slow.items():
            assert row[name] == pytest.approx(value, rel=1e-12)
        assert row["score"] == 1
        assert row["class_id"] == 0
    assert prediction.instances.dtype == np.int32
    np.testing.assert_array_equal(prediction.instances, instances)


@settings(deadline=None)
@given(label_maps, st.integers(0, 2**32 - 1))
def test_score_is_the_mean_foreground(instances: np.ndarray, seed: int) -> None:
    foreground = np.random.default_rng(seed).random(instances.shape)
    prediction = prediction_from_instances(instances, foreground=foreground)
    assert prediction.foreground.dtype == np.float32
    for row in prediction.table:
        assert row["score"] == pytest.approx(foreground[instances == row["id"]].mean(), abs=1e-6)


def test_given_scores_and_classes_are_ordered_by_id() -> None:
    prediction = prediction_from_instances(
        np.array([[70_000, 0, 3]]),
        foreground=np.ones((1, 3)),
        scores=np.array([0.25, 0.5]),
        class_ids=np.array([1, 0]),
        class_names=["tumour", "stroma"],
    )
    assert prediction.table["id"].tolist() == [3, 70_000]
    assert prediction.table["score"].tolist() == [0.25, 0.5]
    assert prediction.table["class_id"].tolist() == [1, 0]
    assert prediction.class_names == ("tumour", "stroma")


def test_it_says_what_was_found() -> None:
    label_map = np.array([[1, 0, 2], [0, 0, 3]])
    assert repr(prediction_from_instances(label_map)) == "NucleiPrediction(3 nuclei, 3 x 2 px)"
    classes = {"class_ids": np.array([1, 0, 1]), "class_names": ("tumour", "stroma")}
    found = prediction_from_instances(label_map, **classes)
    assert repr(found) == "NucleiPrediction(3 nuclei (tumour: 1, stroma: 2), 3 x 2 px)"


@pytest.mark.parametrize("shape", [(4, 5), (1, 1), (0, 7)])
def test_no_nuclei_is_an_empty_table(shape: tuple[int, int]) -> None:
    prediction = prediction_from_instances(np.zeros(shape, int), foreground=np.zeros(shape), scores=None)
    assert len(prediction) == 0
    assert prediction.table.shape == (0,)
    assert prediction.table.dtype == NUCLEUS_DTYPE


@pytest.mark.parametrize("instances", [np.zeros((2, 3)), np.zeros((2, 3, 1), int), np.zeros(4, int)])
def test_what_is_not_a_label_map_is_refused(instances: np.ndarray) -> None:
    with pytest.raises(ConfigurationError, match=r"\(H, W\)"):
        prediction_from_instances(instances)


@pytest.mark.parametrize("name", ["scores", "class_ids"])
def test_wrong_number_of_values_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{name}.*\(1\), found 2"):
        prediction_from_instances(np.ones((2, 2), int), **{name: np.zeros(2)})


@pytest.mark.parametrize(
    "instances",
    [
        np.array([[0, -1]]),
        np.array([[-1, 5]], dtype=np.int8),
        np.array([[2**31]]),
        np.array([[2**64 - 1]], dtype=np.uint64),
    ],
)
def test_ids_that_do_not_fit_are_refused(instances: np.ndarray) -> None:
    with pytest.raises(ConfigurationError, match=r"ids in 0\.\.2147483647"):
        prediction_from_instances(instances)


def test_the_largest_id_is_kept() -> None:
    prediction = prediction_from_instances(np.array([[2**31 - 1]], dtype=np.uint64))
    assert prediction.table["id"].tolist() == [2**31 - 1]
    assert prediction.instances.tolist() == [[2**31 - 1]]


@pytest.mark.parametrize("shape", [(3, 2), (1, 2, 3), (2, 4), (6,)])
def test_foreground_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"foreground.*\(2, 3\)"):
        prediction_from_instances(np.ones((2, 3), int), foreground=np.ones(shape))
