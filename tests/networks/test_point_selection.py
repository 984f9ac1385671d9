import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nucsam_monai.networks.sac import select_points
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles.flood_fill import flood_fill
from tests.oracles.point_selection import component_centres, farthest_pixels

MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda shape: arrays(bool, shape))


def probability(*masks):
    return torch.from_numpy(np.stack(masks)).float()[:, None]


def chosen(prompts, label, image=0):
    """The points of one label as (y, x), in their order."""
    found = prompts.coordinates[image][prompts.labels[image] == label]
    return [(int(y), int(x)) for x, y in found.tolist()]


def disc(shape, row, column, radius):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


@settings(max_examples=60)
@given(mask=MASKS, count=st.integers(0, 12), seed=st.integers(0, 9))
def test_centroid_rule_equals_its_definition(mask, count, seed):
    prompts = select_points(probability(mask), count, "O", seed=seed)
    assert prompts.coordinates.shape == (1, 2 * count, 2)
    nuclei, centres = chosen(prompts, 1), component_centres(mask)
    assert chosen(prompts, 0) == farthest_pixels(~mask, count)
    assert len(set(nuclei)) == len(nuclei) == min(count, mask.sum())
    assert all(mask[pixel] for pixel in nuclei)
    if len(centres) <= count:
        assert set(centres) == set(nuclei[: len(centres)])
    else:
        assert set(nuclei) <= set(centres)


@settings(max_examples=40)
@given(mask=MASKS, count=st.integers(0, 12), seed=st.integers(0, 9))
def test_random_rule_takes_different_candidates_and_pads(mask, count, seed):
    prompts = select_points(probability(mask), count, "R", seed=seed)
    for label, candidates in ((1, mask), (0, ~mask)):
        pixels = chosen(prompts, label)
        assert len(set(pixels)) == len(pixels) == min(count, candidates.sum())
        assert all(candidates[pixel] for pixel in pixels)
    assert (prompts.labels[:, :count] != 0).all()
    assert (prompts.labels[:, count:] != 1).all()


def test_random_pixels_are_uniform():
    mask = np.zeros((3, 4), dtype=bool)
    mask[0, :3] = mask[2, 1:] = True
    drawn = Counter(
        pixel
        for seed in range(500)
        for pixel in chosen(select_points(probability(mask), 2, "R", seed=seed), 1)
    )
    assert set(drawn) == {(int(y), int(x)) for y, x in np.argwhere(mask)}
    assert all(abs(times - 500 / 3) < 53 for times in drawn.values())  # 5 standard deviations


def test_large_components_are_drawn_in_proportion_to_their_area():
    mask = np.zeros((7, 20), dtype=bool)
    mask[1:6, 1:7] = True  # 30 pixels
    mask[2:4, 9:14] = True  # 10
    mask[5, 16:18] = True  # 2
    first = Counter(chosen(select_points(probability(mask), 1, seed=seed), 1)[0] for seed in range(500))
    expected = {(3, 4): 30, (3, 11): 10, (5, 17): 2}
    assert set(first) == set(expected)
    for centre, area in expected.items():
        share = area / 42
        assert abs(first[centre] - 500 * share) < 5 * (500 * share * (1 - share)) ** 0.5


def test_background_of_one_component_gets_points_far_from_nuclei():
    shape = (64, 64)
    nucleus = disc(shape, 32, 32, 12)  # the background's centroid lies inside
    prompts = select_points(probability(nucleus), 3)
    distances = [np.hypot(y - 32, x - 32) for y, x in chosen(prompts, 0)]
    assert chosen(prompts, 1)[0] == (32, 32)
    assert min(distances) > 20
    pairs = [np.hypot(*np.subtract(a, b)) for a in chosen(prompts, 0) for b in chosen(prompts, 0) if a != b]
    assert min(pairs) > 20


def test_centroid_outside_of_a_crescent_moves_into_it():
    shape = (48, 48)
    crescent = disc(shape, 24, 24, 18) & ~disc(shape, 24, 30, 15)
    ((y, x),) = chosen(select_points(probability(crescent), 1), 1)
    assert crescent[y, x]
    assert x < 12  # where it is thickest


@pytest.mark.parametrize("rule", ["O", "R"])
@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_images_without_candidates_are_padded(rule, value):
    prompts = select_points(torch.full((2, 1, 8, 8), value), 3, rule)
    expected = {0.0: [-1, -1, -1, 0, 0, 0], 1.0: [1, 1, 1, -1, -1, -1]}.get(value, [-1] * 6)
    assert prompts.labels.tolist() == [expected] * 2
    assert prompts.coordinates.isfinite().all()


def test_thresholds_differ_by_rule_and_leave_doubtful_pixels_out():
    values = torch.tensor([0.05, 0.4, 0.6, 0.95]).expand(1, 1, 1, 4)
    assert select_points(values, 4, "O").labels.tolist() == [[1, 1, -1, -1, 0, 0, -1, -1]]
    assert select_points(values, 4, "R").labels.tolist() == [[1, -1, -1, -1, 0, -1, -1, -1]]
    assert select_points(values, 4, "R", tau=0.55).labels.tolist() == [[1, 1, -1, -1, 0, 0, -1, -1]]


@pytest.mark.parametrize("rule", ["O", "R"])
def test_seeds_determine_the_points_of_each_image_alone(rule):
    noise = torch.rand(3, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    together = select_points(noise, 5, rule, 0.5, seed=3)
    for image in range(3):
        alone = select_points(noise[image : image + 1], 5, rule, 0.5, seed=3)
        assert torch.equal(alone.coordinates[0], together.coordinates[image])
    other = select_points(noise, 5, rule, 0.5, seed=4)
    assert not torch.equal(other.coordinates[:, :5], together.coordinates[:, :5])
    torch.manual_seed(0)
    drawn = [select_points(noise, 5, rule, 0.5).coordinates for _ in range(2)]
    assert not torch.equal(*drawn)
    torch.manual_seed(0)
    assert torch.equal(select_points(noise, 5, rule, 0.5).coordinates, drawn[0])


@pytest.mark.parametrize("rule", ["O", "R"])
def test_points_can_be_256_on_a_noisy_image(rule):
    noise = torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
    prompts = select_points(noise, 256, rule)
    assert prompts.labels.tolist() == [[1] * 256 + [0] * 256]
    assert not prompts.coordinates.requires_grad
    components = flood_fill((noise[0, 0] >= 0.5).detach().numpy()) if rule == "O" else []
    assert len(components) < 256  # fewer than points: most are filled up


def test_wrong_arguments_are_refused():
    values = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ConfigurationError, match=r"selection 'X': expected 'O' \(centroids\) or 'R'"):
        select_points(values, 1, "X")
    for count, tau in ((-1, 0.5), (1, 1.5)):
        with pytest.raises(ConfigurationError, match="expected 0 or more, and a probability"):
            select_points(values, count, tau=tau)


def test_tracing_is_refused_as_it_would_keep_the_points():
    with warnings.catch_warnings(), pytest.raises(ConfigurationError, match="n_points_test 0"):
        torch.jit.trace(lambda values: select_points(values, 1).coordinates, torch.zeros(1, 1, 4, 4))
