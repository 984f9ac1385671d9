import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.color import rgb2lab

from nucsam_monai.io import comparison_overlay, overlay_image
from nucsam_monai.io.overlay import FALSE_POSITIVE, MISSED, PALETTE, TRUE_POSITIVE, outline_mask
from nucsam_monai.utils.errors import ConfigurationError

OUTCOMES = (TRUE_POSITIVE, FALSE_POSITIVE, MISSED)

label_maps = hnp.arrays(
    np.int32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.sampled_from([0, 1, 2, 70_000]),
)


def luminance(colour: np.ndarray) -> float:
    """Relative luminance of sRGB (WCAG 2)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.asarray(colour) / 255]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@settings(deadline=None)
@given(label_maps)
def test_outline_is_every_pixel_with_an_outer_neighbour(instances: np.ndarray) -> None:
    padded = np.pad(instances, 1, constant_values=-1)
    expected = np.zeros(instances.shape, dtype=bool)
    for y, x in np.argwhere(instances):
        neighbours = (padded[y, x + 1], padded[y + 2, x + 1], padded[y + 1, x], padded[y + 1, x + 2])
        expected[y, x] = any(neighbour != instances[y, x] for neighbour in neighbours)
    np.testing.assert_array_equal(outline_mask(instances), expected)


@settings(deadline=None)
@given(label_maps)
def test_only_outlines_are_drawn_and_the_image_is_not_changed(instances: np.ndarray) -> None:
    image = np.full((*instances.shape, 3), 77, dtype=np.uint8)
    ids = np.unique(instances[instances != 0])
    colours = np.stack([ids % 251, ids % 7, ids % 3], axis=1).astype(np.uint8).reshape(-1, 3)
    drawn = overlay_image(image, instances, colours=colours)
    outline = outline_mask(instances)
    assert (image == 77).all()
    assert (drawn[~outline] == 77).all()
    for nucleus_id, colour in zip(ids, colours, strict=True):
        assert (drawn[outline & (instances == nucleus_id)] == colour).all()


def test_colour_follows_from_the_id() -> None:
    image = np.zeros((5, 9, 3), dtype=np.uint8)
    instances = np.zeros((5, 9), dtype=np.int32)
    instances[:, 5:] = 7
    alone = overlay_image(image, instances)
    instances[:, :3] = 2
    together = overlay_image(image, instances)
    np.testing.assert_array_equal(alone[:, 5:], together[:, 5:])


@pytest.mark.parametrize("index", range(len(PALETTE)))
def test_palette_stands_out_from_black_white_and_stains(index: int) -> None:
    light = luminance(PALETTE[index])
    assert (light + 0.05) / 0.05 > 4.5  # against black
    assert 1.05 / (light + 0.05) > 1.8  # against white
    for stain in ((110, 80, 150), (225, 160, 195)):
        assert np.linalg.norm(PALETTE[index].astype(float) - stain) > 75


@pytest.mark.parametrize("deficiency", ["protan", "deutan", "tritan"])
def test_outcomes_are_told_apart_by_colour_blind_eyes(deficiency: str) -> None:
    # Machado, Oliveira and Fernandes 2009, severity 1.0, applied to linear RGB.
    simulate = {
        "protan": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deutan": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        "tritan": [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    }[deficiency]
    linear = (np.array(OUTCOMES) / 255) ** 2.2
    seen = np.clip(linear @ np.array(simulate).T, 0, 1) ** (1 / 2.2)
    for one, other in itertools.combinations(rgb2lab(seen), 2):
        assert np.linalg.norm(one - other) > 20


@pytest.mark.parametrize(
    ("image", "instances", "colours"),
    [
        (np.zeros((4, 5)), np.zeros((4, 5), int), None),
        (np.zeros((4, 5, 3)), np.zeros((4, 5), int), None),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), int), None),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5)), None),
        (np.zeros((4, 5, 3), np.uint8), np.ones((4, 5), int), np.zeros((2, 3), np.uint8)),
    ],
)
def test_what_does_not_fit_is_refused(image, instances, colours) -> None:
    with pytest.raises(ConfigurationError):
        overlay_image(image, instances, colours=colours)


def has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == colour).all(axis=-1).any())


def test_comparison_colours_each_nucleus_by_outcome() -> None:
    image = np.full((64, 200, 3), 90, dtype=np.uint8)
    truth = np.zeros((64, 200), dtype=np.int32)
    truth[5:20, 5:30] = 1
    truth[30:50, 60:90] = 2
    predicted = np.zeros_like(truth)
    predicted[6:20, 5:30] = 8
    predicted[30:50, 120:150] = 9
    picture = comparison_overlay(image, truth, predicted, matched_true=[1], matched_predicted={8})
    assert picture.dtype == np.uint8
    panels = picture[24:-24]
    left, middle, right = np.array_split(panels, 3, axis=1)
    outcomes = [[has_colour(panel, colour) for colour in OUTCOMES] for panel in (left, middle, right)]
    assert outcomes == [[False, False, False], [True, False, True], [True, True, False]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (700, 1), (40, 30)])
def test_comparison_of_odd_sizes_without_nuclei(shape: tuple[int, int]) -> None:
    empty = np.zeros(shape, dtype=np.int32)
    image = np.zeros((*shape, 3), np.uint8)
    picture = comparison_overlay(image, empty, empty, matched_true=(), matched_predicted=())
    assert picture.shape[1] >= 3 * 320
    assert picture.shape[0] >= shape[0] + 48


def test_comparison_refuses_ids_that_are_not_there() -> None:
    empty, image = np.zeros((4, 4), dtype=np.int32), np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ConfigurationError, match="matched_predicted"):
        comparison_overlay(image, empty, empty, matched_true=(), matched_predicted=[3])
