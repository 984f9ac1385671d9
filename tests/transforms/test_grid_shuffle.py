import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from nucsam_monai.transforms import RandGridShuffled
from nucsam_monai.transforms.grid_shuffle import shuffle_cells


@settings(max_examples=60)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 4), st.randoms())
def test_each_cell_is_the_one_that_was_ordered(height, width, grid, random):
    pixels = torch.arange(2 * height * width).reshape(2, height, width)
    order = list(range(grid**2))
    random.shuffle(order)
    shuffled = shuffle_cells(pixels, torch.tensor(order), grid)
    h, w = height // grid, width // grid

    def cell(image, number):
        top, left = number // grid * h, number % grid * w
        return image[:, top : top + h, left : left + w]

    for number, source in enumerate(order):
        assert torch.equal(cell(shuffled, number), cell(pixels, source))
    assert torch.equal(shuffled[:, grid * h :], pixels[:, grid * h :])
    assert torch.equal(shuffled[..., grid * w :], pixels[..., grid * w :])
    assert sorted(shuffled.flatten().tolist()) == pixels.flatten().tolist()


@pytest.mark.parametrize("kind", [torch.as_tensor, MetaTensor, np.asarray])
@pytest.mark.parametrize("size", [(16, 24), (19, 25)])
def test_image_instances_and_classes_stay_together(kind, size):
    rng = np.random.default_rng(0)
    instances = np.kron(rng.integers(0, 6, (5, 5)), np.ones((5, 5), dtype=int))[None, : size[0], : size[1]]
    classes = {number: 10 * number for number in range(1, 6)}
    item = {
        "image": kind(instances.repeat(3, axis=0).astype(np.uint8)),
        "instances": kind(instances.astype(np.int32)),
        "classes": classes,
    }
    before = instances.copy()
    shuffled = RandGridShuffled(prob=1.0).set_random_state(0)(item)
    assert type(shuffled["image"]) is type(item["image"])
    assert shuffled["image"].dtype == item["image"].dtype
    assert shuffled["instances"].dtype == item["instances"].dtype
    np.testing.assert_array_equal(item["instances"], before)
    assert item["classes"] is classes
    # the image holds each pixel's old id, the classes ten times that
    moved, wholes = np.asarray(shuffled["instances"])[0], np.asarray(shuffled["image"])[0]
    assert not np.array_equal(wholes, before[0])
    assert (wholes[moved == 0] == 0).all()
    for part, kind_of_part in shuffled["classes"].items():
        assert (10 * wholes[moved == part] == kind_of_part).all()
    assert set(np.unique(moved)) - {0} == set(shuffled["classes"])


def test_the_parts_of_a_cut_nucleus_are_nuclei_of_their_own():
    instances = torch.zeros(1, 8, 8, dtype=torch.int32)
    instances[0, 3:5, 3:5] = 9  # on the corner of four cells
    instances[0, 0, 0] = 70_000
    shuffled = RandGridShuffled(prob=1.0, grid=2).set_random_state(1)(
        {"image": instances.clone(), "instances": instances, "classes": {9: 1, 70_000: 0}}
    )
    ids, areas = shuffled["instances"].unique(return_counts=True)
    assert ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert areas[1:].tolist() == [1] * 5
    assert sorted(shuffled["classes"].values()) == [0, 1, 1, 1, 1]


def test_cells_are_exchanged_with_the_probability_asked_for():
    item = {"image": torch.arange(64).reshape(1, 8, 8), "instances": torch.zeros(1, 8, 8, dtype=torch.int32)}
    transform = RandGridShuffled(prob=0.5).set_random_state(0)
    changed = sum(not torch.equal(transform(item)["image"], item["image"]) for _ in range(200))
    assert 65 < changed < 135
    assert RandGridShuffled(prob=0.0)(item)["image"] is item["image"]


def test_images_smaller_than_the_grid_stay_as_they_are():
    item = {"image": torch.arange(6).reshape(1, 2, 3), "instances": torch.tensor([[[0, 1, 1], [0, 0, 1]]])}
    shuffled = RandGridShuffled(prob=1.0)(item)
    assert torch.equal(shuffled["image"], item["image"])
    assert torch.equal(shuffled["instances"], item["instances"])
