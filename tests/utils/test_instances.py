from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.instances import (
    DistanceRule,
    connected_components,
    distance_instances,
    instances_of_foreground,
    watershed_instances,
)
from tests.oracles import learned_instances as oracle
from tests.oracles.flood_fill import flood_fill
from tests.oracles.watershed_instances import divide

CENTRES = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 39), st.integers(1, 7)), max_size=12)
DISTANCES = st.integers(1, 8)


def discs(*centres, shape=(30, 40)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, dtype=bool)
    for row, column, radius in centres:
        mask |= (y - row) ** 2 + (x - column) ** 2 <= radius**2
    return mask


def pixels_of(label_map):
    return {
        value: {(int(y), int(x)) for y, x in np.argwhere(label_map == value)}
        for value in range(1, label_map.max() + 1)
    }


def check_properties(mask, label_map):
    assert (label_map.dtype, label_map.shape) == (np.int32, mask.shape)
    np.testing.assert_array_equal(label_map > 0, mask)
    components = flood_fill(mask)
    for pixels in pixels_of(label_map).values():
        assert pixels  # the ids have no gap
        assert sum(pixels <= component for component in components) == 1
    for value in range(1, label_map.max() + 1):
        assert len(flood_fill(label_map == value)) == 1


@settings(max_examples=60, deadline=None)
@given(CENTRES, DISTANCES)
def test_every_pixel_of_overlapping_discs_is_in_one_connected_piece_of_its_component(centres, distance):
    mask = discs(*centres)
    check_properties(mask, watershed_instances(mask, distance))


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), DISTANCES, st.booleans())
def test_any_mask_is_divided_the_same_way_each_time(mask, distance, transposed):
    mask = mask.T if transposed else mask  # not contiguous
    label_map = watershed_instances(mask, distance)
    check_properties(mask, label_map)
    np.testing.assert_array_equal(watershed_instances(mask, distance), label_map)


def same_pieces(label_map, expected):
    pairs = np.unique(np.stack([label_map.ravel(), expected.ravel()]), axis=1)
    return len(pairs.T) == len(np.unique(label_map)) == len(np.unique(expected))


@settings(max_examples=100, deadline=None)
@given(CENTRES, DISTANCES)
def test_overlapping_discs_are_cut_as_by_the_reference(centres, distance):
    mask = discs(*centres)
    assert same_pieces(watershed_instances(mask, distance), divide(mask, distance))


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))), DISTANCES)
def test_any_mask_is_cut_as_by_the_reference(mask, distance):
    assert same_pieces(watershed_instances(mask, distance), divide(mask, distance))


@pytest.mark.parametrize("gap", [16, 17, 18])
@pytest.mark.parametrize("along", ["rows", "columns"])
def test_two_touching_discs_are_split_between_their_centres(gap, along):
    mask = discs((15, 11, 9), (15, 11 + gap, 9))
    mask = mask if along == "columns" else mask.T
    assert connected_components(mask).max() == 1
    label_map = watershed_instances(mask, min_distance_px=7)
    label_map = label_map if along == "columns" else label_map.T
    assert label_map.max() == 2
    middle = 11 + gap / 2
    left, right = label_map[15, 11], label_map[15, 11 + gap]
    assert left != right
    columns = np.arange(mask.shape[0] if along == "rows" else mask.shape[1])
    assert not (label_map[:, columns < middle - 1] == right).any()
    assert not (label_map[:, columns > middle + 1] == left).any()


def test_centres_that_are_nearer_than_the_distance_stay_together():
    mask = discs((15, 11, 9), (15, 28, 9))
    assert watershed_instances(mask, min_distance_px=20).max() == 1
    assert watershed_instances(mask, min_distance_px=14).max() == 2


def test_a_neighbour_does_not_hide_the_centres_of_another_component():
    # The small discs lie nearer to the big one than to each other, but only they touch.
    mask = discs((15, 8, 7), (9, 20, 4), (17, 20, 4), shape=(30, 30))
    assert connected_components(mask).max() == 2
    assert watershed_instances(mask, min_distance_px=6).max() == 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (0, 5), (5, 0), (12, 12)])
def test_full_and_empty_masks(shape):
    full = np.ones(shape, dtype=bool)
    np.testing.assert_array_equal(watershed_instances(full), full.astype(np.int32))
    np.testing.assert_array_equal(watershed_instances(~full), np.zeros(shape, dtype=np.int32))


def test_single_pixels_stay_instances():
    mask = np.zeros((7, 9), dtype=bool)
    mask[[0, 3, 6], [0, 4, 8]] = True
    np.testing.assert_array_equal(watershed_instances(mask), connected_components(mask))


@settings(max_examples=20, deadline=None)
@given(CENTRES)
def test_the_rule_is_chosen_by_name(centres):
    mask = discs(*centres)
    np.testing.assert_array_equal(instances_of_foreground(mask), connected_components(mask))
    np.testing.assert_array_equal(
        instances_of_foreground(mask, "watershed", 3), watershed_instances(mask, min_distance_px=3)
    )


@pytest.mark.parametrize(("rule", "distance"), [("contours", 5), ("watershed", 0), ("components", -1)])
def test_unknown_rules_and_distances_are_refused(rule, distance):
    with pytest.raises(ConfigurationError, match=r"expected (one of|at least)"):
        instances_of_foreground(np.zeros((2, 2), dtype=bool), rule, distance)


RULES = st.builds(
    DistanceRule,
    threshold=st.sampled_from([0.3, 0.5]),
    marker_threshold=st.sampled_from([0.3, 0.5, 0.8]),
    min_marker_px=st.integers(1, 4),
    min_area_px=st.integers(1, 8),
    min_score=st.sampled_from([0.0, 0.4, 0.6]),
)
SEEDS = st.integers(0, 2**32 - 1)


def random_maps(seed, shape, smooth):
    """Return a probability and a distance map without equal values; smooth ones look like nuclei."""
    rng = np.random.default_rng(seed)
    maps = rng.random((2, *shape))
    if smooth:
        maps = np.stack([cv2.GaussianBlur(one, (0, 0), 1.5) for one in maps])
        maps = (maps - maps.min()) / (maps.max() - maps.min() + 1e-9)
    return maps[0], maps[1]


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.tuples(st.integers(1, 14), st.integers(1, 14)), st.booleans(), RULES)
def test_learned_distances_flood_the_foreground_as_pixel_by_pixel(seed, shape, smooth, rule):
    foreground, distance = random_maps(seed, shape, smooth)
    found = distance_instances(foreground, distance, rule)
    expected = oracle.distance_instances(foreground, distance, rule)
    np.testing.assert_array_equal(found > 0, expected > 0)
    assert same_pieces(found, expected)
    check_nuclei(foreground, found, rule)


def test_a_component_is_split_as_it_would_be_alone():
    maps = [random_maps(seed, (17, 9 + seed), smooth=seed % 2 == 0) for seed in range(24)]
    rule = DistanceRule(threshold=0.35, marker_threshold=0.5, min_marker_px=1, min_area_px=1)
    gap = np.zeros((2, 17, 1))
    joined = np.concatenate([part for one in maps for part in (np.stack(one), gap)], axis=2)
    found = distance_instances(joined[0], joined[1], rule)
    left, pieces = 0, 0
    for foreground, distance in maps:
        width = foreground.shape[1]
        alone = distance_instances(foreground, distance, rule)
        assert same_pieces(found[:, left : left + width], alone)
        left, pieces = left + width + 1, pieces + alone.max()
    assert found.max() == pieces


def check_nuclei(foreground, found, rule):
    assert (found.dtype, found.shape) == (np.int32, foreground.shape)
    assert not found[foreground < rule.threshold].any()
    for pixels in pixels_of(found).values():
        assert len(pixels) >= rule.min_area_px  # so the ids have no gap
    for value in range(1, found.max() + 1):
        assert len(flood_fill(found == value)) == 1


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(2, 5), RULES)
def test_of_equal_depths_any_nucleus_may_take_a_pixel_that_none_reaches_by_a_deeper_way(
    seed, shape, levels, rule
):
    foreground, distance = random_maps(seed, shape, smooth=False)
    distance = np.round(distance * levels) / levels
    rule = replace(rule, min_area_px=1, min_score=0.0)
    found = distance_instances(foreground, distance, rule)
    check_nuclei(foreground, found, rule)
    mask = foreground >= rule.threshold
    np.testing.assert_array_equal(found > 0, mask)
    markers = oracle.markers_of(foreground, distance, rule)
    ways = {marker_id: [] for marker_id in range(1, found.max() + 1)}
    for marker in markers:
        (own,) = {found[pixel] for pixel in marker}  # a marker is never cut
        ways[own].append(oracle.shallowest_on_the_way(mask, distance, marker))
    assert all(len(own) <= 1 for own in ways.values())  # and no nucleus has two
    if not markers:
        return
    every = np.max([way for own in ways.values() for way in own], axis=0)
    for value, own in ways.items():
        if own:
            np.testing.assert_array_equal(own[0][found == value], every[found == value])


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (7, 9)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_and_full_images_have_no_nucleus_or_one(shape, value):
    rule = DistanceRule(min_marker_px=1, min_area_px=1)
    for depth in (0.0, 1.0):
        found = distance_instances(np.full(shape, value), np.full(shape, depth), rule)
        np.testing.assert_array_equal(found, np.full(shape, int(value)))


def test_small_markers_part_nothing_and_small_nuclei_are_dropped():
    depth = np.zeros((1, 20))
    depth[0, 2:5], depth[0, 10:14] = 0.9, 0.9
    foreground = np.zeros((1, 20))
    foreground[0, :16] = foreground[0, 18:] = 1.0
    for markers, area, expected in ((1, 1, 3), (1, 3, 2), (4, 1, 2), (4, 17, 0), (9, 3, 1)):
        rule = DistanceRule(min_marker_px=markers, min_area_px=area)
        assert distance_instances(foreground, depth, rule).max() == expected


def test_faint_nuclei_are_dropped():
    foreground = np.array([[0.6, 0.6, 0.0, 1.0, 1.0, 0.0, 0.9]])
    depth = np.array([[0.4, 0.9, 0.0, 0.4, 0.9, 0.0, 0.3]])  # scores 0.54, 0.9 and 0.27
    for least, expected in ((0.0, [1, 1, 0, 2, 2, 0, 3]), (0.5, [1, 1, 0, 2, 2, 0, 0]), (0.95, [0] * 7)):
        rule = DistanceRule(min_marker_px=1, min_area_px=1, min_score=least)
        np.testing.assert_array_equal(distance_instances(foreground, depth, rule), [expected])


@pytest.mark.parametrize("gap", [14, 16, 18])
def test_touching_discs_are_parted_by_their_own_distances(gap):
    instances = np.zeros((30, 45), dtype=np.int32)
    instances[discs((15, 12, 9), shape=instances.shape)] = 1
    instances[discs((15, 12 + gap, 9), shape=instances.shape) & (instances == 0)] = 2
    depth = oracle.nucleus_distance(instances)
    assert connected_components(instances > 0).max() == 1
    found = distance_instances((instances > 0).astype(float), depth)
    assert found.max() == 2
    assert np.count_nonzero(found != instances) <= 20  # along the border alone
    np.testing.assert_array_equal(found > 0, instances > 0)


MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 8)))


@settings(max_examples=100, deadline=None)
@given(MASKS, st.booleans())
def test_components_equal_those_of_a_flood_fill(mask, transposed):
    mask = mask.T if transposed else mask  # not contiguous
    labels = connected_components(mask)
    assert labels.dtype == np.int32
    assert labels.shape == mask.shape
    found = {
        frozenset(zip(*(axis.tolist() for axis in np.nonzero(labels == value)), strict=True))
        for value in range(1, labels.max() + 1)
    }
    assert found == {frozenset(component) for component in flood_fill(mask)}


def test_an_image_without_pixels_has_no_components():
    assert connected_components(np.zeros((0, 5), dtype=bool)).shape == (0, 5)
