import logging
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nucsam_monai.losses.prompter import match_anchors
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles.anchor_matching import cheapest_anchors

COORDINATES = st.floats(-20, 20, width=32)


def uniform(anchors, classes=1):
    return np.full((anchors, classes + 1), 1 / (classes + 1))


@st.composite
def problems(draw):
    anchors = draw(st.integers(1, 6))
    nuclei = draw(st.integers(0, min(anchors, 4)))
    weights = draw(arrays(np.float64, (anchors, 4), elements=st.floats(0.1, 1)))
    return (
        draw(arrays(np.float32, (anchors, 2), elements=COORDINATES)),
        weights / weights.sum(axis=1, keepdims=True),
        draw(arrays(np.float32, (nuclei, 2), elements=COORDINATES)),
        draw(arrays(np.int64, nuclei, elements=st.integers(0, 2))),
    )


@settings(max_examples=80)
@given(problems(), st.sampled_from([0.0, 0.1, 1.0]))
def test_no_other_matching_is_cheaper(problem, distance_weight):
    matching = match_anchors(*problem, distance_weight)
    points, probabilities, nuclei, classes = problem
    anchors = matching.anchors.tolist()
    assert len(set(anchors)) == len(anchors) == len(nuclei)
    _, lowest = cheapest_anchors(*(part.tolist() for part in problem), distance_weight)
    own = sum(
        distance_weight * np.linalg.norm(points[anchor].astype(float) - nuclei[nucleus])
        - probabilities[anchor, classes[nucleus]]
        for nucleus, anchor in enumerate(anchors)
    )
    assert matching.cost == pytest.approx(own, abs=1e-6)
    assert own == pytest.approx(lowest, abs=1e-6)


def test_three_anchors_and_two_nuclei():
    points = np.array([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0]])
    # Both nuclei are nearest to anchor 1, which the second one gets: 0 + 10 beats 10 + 0 by its class.
    nuclei, classes = np.array([[10.0, 0.0], [10.0, 0.0]]), np.array([0, 1])
    probabilities = np.array([[0.5, 0.1, 0.4], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    matching = match_anchors(points, probabilities, nuclei, classes)
    assert matching.anchors.tolist() == [0, 1]
    assert matching.cost == pytest.approx((1.0 - 0.5) + (0.0 - 0.7))


def test_the_class_outweighs_ten_pixels_at_most():
    points, nuclei = np.array([[0.0, 0.0], [9.0, 0.0], [11.0, 0.0]]), np.array([[0.0, 0.0]])
    sure, unsure = [1.0, 0.0], [0.0, 1.0]
    assert match_anchors(
        points, np.array([unsure, sure, unsure]), nuclei, np.array([0])
    ).anchors.tolist() == [1]
    assert match_anchors(
        points, np.array([unsure, unsure, sure]), nuclei, np.array([0])
    ).anchors.tolist() == [0]


def test_without_nuclei_nothing_is_matched():
    matching = match_anchors(np.zeros((4, 2)), uniform(4), np.zeros((0, 2)), np.zeros(0, dtype=int))
    assert matching.anchors.shape == (0,)
    assert matching.anchors.dtype == np.int64
    assert matching.cost == 0


def test_as_many_nuclei_as_anchors():
    points = np.array([[0.0, 0.0], [8.0, 0.0], [16.0, 0.0]])
    matching = match_anchors(points, uniform(3), points[[2, 0, 1]] + 1, np.zeros(3, dtype=int))
    assert matching.anchors.tolist() == [2, 0, 1]


def test_more_nuclei_than_anchors_are_refused():
    with pytest.raises(ConfigurationError, match="3 nuclei in an image of 2 anchor points"):
        match_anchors(np.zeros((2, 2)), uniform(2), np.zeros((3, 2)), np.zeros(3, dtype=int))


@pytest.mark.parametrize("kind", [-1, 2])
def test_unknown_classes_are_refused(kind):
    with pytest.raises(ConfigurationError, match="expected 0 to 1"):
        match_anchors(np.zeros((2, 2)), uniform(2, classes=2), np.zeros((1, 2)), np.array([kind]))


@settings(max_examples=40)
@given(problems(), st.data())
def test_damaged_anchors_are_taken_as_rarely_as_possible(problem, data):
    points, probabilities, nuclei, classes = problem
    damage = data.draw(arrays(bool, len(points)))
    points[damage] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    anchors = match_anchors(points, probabilities, nuclei, classes).anchors
    assert len(set(anchors.tolist())) == len(nuclei)
    healthy = int((~damage).sum())
    assert damage[anchors].sum() == max(0, len(nuclei) - healthy)


def test_damaged_costs_are_said(caplog):
    points = np.array([[np.nan, 0.0], [1.0, 1.0]], dtype=np.float32)
    with caplog.at_level(logging.WARNING):
        matching = match_anchors(points, uniform(2), np.zeros((1, 2)), np.array([0]))
    assert matching.anchors.tolist() == [1]
    assert "1 of 2 matching costs are not finite" in caplog.text
    probabilities = np.full((2, 2), np.nan)
    assert len(match_anchors(points, probabilities, np.zeros((2, 2)), np.zeros(2, dtype=int)).anchors) == 2


def test_a_training_image_takes_milliseconds():
    rng = np.random.default_rng(0)
    problem = (
        rng.uniform(0, 256, (1024, 2)).astype(np.float32),
        rng.dirichlet(np.ones(6), 1024).astype(np.float32),
        rng.uniform(0, 256, (100, 2)),
        rng.integers(0, 5, 100),
    )
    durations = []
    for _ in range(5):
        start = time.process_time()
        match_anchors(*problem)
        durations.append(time.process_time() - start)
    assert min(durations) < 0.02
