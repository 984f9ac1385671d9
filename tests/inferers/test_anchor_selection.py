import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nucsam_monai.inferers import select_points, suppress_near_points
from nucsam_monai.networks import PrompterOutput
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles.point_suppression import suppress_near_points_slow


def output_of(points, probabilities, mask=None):
    return PrompterOutput(
        torch.tensor([points], dtype=torch.float32).reshape(1, -1, 2),
        torch.tensor([probabilities], dtype=torch.float32).log(),
        None if mask is None else torch.as_tensor(mask, dtype=torch.float32)[None, None],
    )


@settings(max_examples=80)
@given(
    arrays(np.float32, st.tuples(st.integers(0, 25), st.just(2)), elements=st.integers(0, 20).map(float)),
    st.sampled_from([0.0, 1.5, 4.7, 100.0]),
    st.data(),
)
def test_suppression_equals_comparing_all_with_all(points, radius, data):
    scores = data.draw(arrays(np.float32, len(points), elements=st.sampled_from([0.1, 0.4, 0.5, 0.9])))
    kept = suppress_near_points(points, scores, radius)
    assert kept.tolist() == suppress_near_points_slow(points.tolist(), scores.tolist(), radius)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    among_kept = distances[np.ix_(kept, kept)]
    assert (among_kept[~np.eye(len(kept), dtype=bool)] > radius).all()
    for dropped in set(range(len(points))) - set(kept.tolist()):
        better = [index for index in kept if scores[index] >= scores[dropped]]
        assert distances[dropped, better].min() <= radius


def test_class_and_score_come_from_the_likeliest_class():
    output = output_of([[5, 5], [20, 5], [5, 20]], [[0.6, 0.1, 0.3], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4]])
    found = select_points(output, (32, 32), mask_filter=False, radius=3)
    assert len(found) == 2
    np.testing.assert_array_equal(found.points, [[5, 5], [20, 5]])
    np.testing.assert_allclose(found.scores, [0.6, 0.5], rtol=1e-5)
    assert found.class_ids.tolist() == [0, 1]
    assert (found.points.dtype, found.scores.dtype, found.class_ids.dtype) == (
        np.float32,
        np.float32,
        np.int64,
    )


def test_points_are_clipped_to_the_image():
    output = output_of([[-4, 3], [99, 40]], [[0.9, 0.1], [0.8, 0.2]])
    found = select_points(output, (20, 30), mask_filter=False, radius=1)
    np.testing.assert_array_equal(found.points, [[0, 3], [29, 19]])


def test_the_mask_filter_looks_at_the_pixel_of_the_point():
    mask = np.full((4, 6), -1.0)
    mask[1, 3] = 0.1
    output = output_of([[3.9, 1.9], [4.0, 1.0], [3.0, 2.0]], [[0.9, 0.1]] * 3, mask)
    found = select_points(output, (4, 6), mask_filter=True, radius=0)
    np.testing.assert_allclose(found.points, [[3.9, 1.9]])
    assert len(select_points(output, (4, 6), mask_filter=False, radius=0)) == 3


def test_a_filtered_point_suppresses_nothing():
    mask = np.full((4, 6), -1.0)
    mask[:, 3:] = 1
    output = output_of([[2, 1], [3, 1]], [[0.9, 0.1], [0.6, 0.4]], mask)
    found = select_points(output, (4, 6), mask_filter=True, radius=2)
    np.testing.assert_array_equal(found.points, [[3, 1]])


@pytest.mark.parametrize("mask_filter", [False, True])
def test_an_image_without_nuclei(mask_filter):
    output = output_of([[5, 5], [6, 6]], [[0.1, 0.9]] * 2, np.zeros((8, 8)))
    found = select_points(output, (8, 8), mask_filter=mask_filter, radius=3)
    assert len(found) == 0
    assert (found.points.shape, found.scores.shape, found.class_ids.shape) == ((0, 2), (0,), (0,))
    assert found.points.dtype == np.float32


def test_points_that_are_not_finite_are_dropped_and_said(caplog):
    output = output_of([[np.nan, 5], [np.inf, 6], [7, 7], [2, 2]], [[0.9, 0.1]] * 3 + [[np.nan, np.nan]])
    with caplog.at_level(logging.WARNING):
        found = select_points(output, (8, 8), mask_filter=False, radius=3)
    np.testing.assert_array_equal(found.points, [[7, 7]])
    assert "3 of 4 points are not finite" in caplog.text


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (2, {}, "found 2 images, expected one"),
        (1, {"radius": -1.0}, "radius -1.0"),
        (1, {"radius": float("nan")}, "radius nan"),
        (1, {"mask_filter": True}, "the output holds no mask"),
    ],
)
def test_what_makes_no_sense_is_refused(images, options, message):
    output = PrompterOutput(torch.zeros(images, 3, 2), torch.zeros(images, 3, 2), None)
    with pytest.raises(ConfigurationError, match=message):
        select_points(output, (8, 8), **{"mask_filter": False, "radius": 3.0, **options})
