import numpy as np
import pytest
import torch
from monai.data import get_track_meta, set_track_meta
from monai.transforms import (
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandRotate90d,
    RandSpatialCropd,
    RandZoomd,
    SpatialPadd,
)

from nucsam_monai.transforms import AugmentWithFoundd, FoundNuclei
from nucsam_monai.transforms.found_points import move_points

BOTH = ["image", "instances"]
HEIGHT, WIDTH = 40, 56
EXACT = [
    SpatialPadd(BOTH, spatial_size=(50, 50)),
    RandSpatialCropd(BOTH, roi_size=(36, 36), random_size=False),
    RandFlipd(BOTH, prob=0.5, spatial_axis=0),
    RandFlipd(BOTH, prob=0.5, spatial_axis=1),
    RandRotate90d(BOTH, prob=0.75),
    RandGaussianNoised("image", prob=0.5),
]
WARPING = [
    RandZoomd(BOTH, prob=0.5, min_zoom=1.0, max_zoom=1.5, mode=("bilinear", "nearest-exact"), keep_size=True),
    RandAffined(
        BOTH,
        prob=0.8,
        rotate_range=0.18,
        shear_range=(0.18, 0.18),
        scale_range=(0.18, 0.18),
        translate_range=(5, 5),
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
        cache_grid=False,
    ),
]


@pytest.fixture(autouse=True)
def without_meta():
    set_track_meta(False)
    yield
    set_track_meta(True)


def item_of(instances):
    labels = torch.from_numpy(instances)[None]
    return {"image": (labels > 0).float().repeat(3, 1, 1), "instances": labels, "image_path": "a.png"}


def found(points):
    points = np.asarray(points, dtype=np.float32)
    return {"a.png": FoundNuclei(points, np.linspace(1, 0, len(points), dtype=np.float32))}


def test_points_follow_their_pixels_exactly():
    rng = np.random.default_rng(0)
    pixels = rng.permutation(HEIGHT * WIDTH)[:40]
    rows, columns = np.divmod(pixels, WIDTH)
    instances = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    instances[rows, columns] = 1 + np.arange(40)
    augment = AugmentWithFoundd(EXACT, found(np.stack([columns, rows], axis=-1)[:, None]))
    augment.set_random_state(seed=3)
    for _ in range(20):
        item = augment(item_of(instances))
        labels = item["instances"][0].numpy()
        inside = 0
        for number, (x, y) in enumerate(item["found_points"][:, 0].numpy(), start=1):
            assert abs(x - round(x)) < 1e-4
            assert abs(y - round(y)) < 1e-4
            if 0 <= round(y) < 36 and 0 <= round(x) < 36:
                inside += 1
                assert labels[round(y), round(x)] == number
        assert inside == len(np.unique(labels[labels > 0])) > 0


def test_points_follow_warped_nuclei():
    rows, columns = np.indices((HEIGHT, WIDTH))
    centres = np.array([[20, 18], [36, 22]])
    instances = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    for number, (x, y) in enumerate(centres, start=1):
        instances[(columns - x) ** 2 + (rows - y) ** 2 <= 25] = number
    augment = AugmentWithFoundd(WARPING, found(centres[:, None]))
    augment.set_random_state(seed=1)
    compared = 0
    for _ in range(20):
        item = augment(item_of(instances))
        labels = item["instances"][0].round().numpy()
        for number, point in enumerate(item["found_points"][:, 0].numpy(), start=1):
            y, x = np.nonzero(labels == number)
            if len(y) and y.min() > 0 and x.min() > 0 and y.max() < HEIGHT - 1 and x.max() < WIDTH - 1:
                compared += 1
                assert np.hypot(*(point - (x.mean(), y.mean()))) < 0.75
    assert compared > 20


def test_the_result_is_plain_and_the_switch_as_before():
    augment = AugmentWithFoundd(EXACT, found([[[3, 4]]]))
    before = item_of(np.zeros((HEIGHT, WIDTH), dtype=np.int32))
    item = augment(before)
    assert not get_track_meta()
    assert all(type(item[key]) is torch.Tensor for key in (*BOTH, "found_points", "found_scores"))
    assert before.keys() == {*BOTH, "image_path"}
    assert before["image"].shape == (3, HEIGHT, WIDTH)


def test_the_seed_decides_and_unknown_images_have_no_points():
    instances = np.arange(HEIGHT * WIDTH, dtype=np.int32).reshape(HEIGHT, WIDTH)
    plain, pointed = AugmentWithFoundd(EXACT, {}), AugmentWithFoundd(EXACT, found([[[3, 4]]]))
    items = []
    for augment in (plain, pointed, pointed):
        augment.set_random_state(seed=5)
        items.append(augment(item_of(instances)))
    assert "found_points" not in items[0]
    for other in items[1:]:
        assert all(torch.equal(items[0][key], other[key]) for key in BOTH)


def test_corners_of_boxes_are_moved_too():
    quarter_turn = torch.tensor([[0.0, 1, 0], [-1, 0, 9], [0, 0, 1]])  # row 2, column 3 was row 3, column 7
    moved = move_points(np.array([[[7.0, 3.0], [7.0, 0.0]]], dtype=np.float32), quarter_turn)
    assert moved.tolist() == [[[3.0, 2.0], [0.0, 2.0]]]
