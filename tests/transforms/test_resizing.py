"""Label maps that are resized stay on their image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nucsam_monai.transforms import RandZoomd, Resized
from nucsam_monai.utils.resizing import resize_labels


@settings(max_examples=40, deadline=None)
@given(st.tuples(*4 * [st.integers(1, 20)]), st.integers(0, 99))
def test_every_pixel_has_the_label_with_the_largest_share(
    sides: tuple[int, int, int, int], seed: int
) -> None:
    height, width, *size = sides
    labels = np.random.default_rng(seed).integers(0, 4, (height, width)).astype(np.int32)
    found = resize_labels(labels, size)
    assert found.shape == tuple(size)
    assert found.dtype == np.int32
    planes = torch.from_numpy(np.stack([labels == label for label in range(4)])).double()[None]
    shares = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)[0].numpy()
    largest = shares.max(axis=0)
    assert (np.take_along_axis(shares, found[None].astype(np.int64), axis=0)[0] > largest - 1e-5).all()


@pytest.mark.parametrize(("before", "after"), [(512, 256), (256, 64), (96, 64), (128, 192), (125, 128)])
def test_nuclei_keep_their_place_and_their_area(before: int, after: int) -> None:
    rng, scale = np.random.default_rng(0), after / before
    rows, columns = np.indices((before, before))
    moved, grown = [], []
    for centre in rng.uniform(0.4, 0.6, (40, 2)) * before:
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= (0.3 * before) ** 2
        found = resize_labels(disc.astype(np.int32), (after, after))
        moved.append((np.argwhere(found).mean(axis=0) + 0.5) / scale - 0.5 - np.argwhere(disc).mean(axis=0))
        grown.append(found.sum() / scale**2 / disc.sum())
    assert np.abs(np.mean(moved, axis=0)).max() * scale < 0.02
    assert np.mean(grown) == pytest.approx(1, abs=0.006)


def test_a_border_between_two_pixels_takes_turns() -> None:
    labels = np.repeat([[0, 7, 7, 7]], 8, axis=0)
    assert resize_labels(labels, (4, 2)).tolist() == [[0, 7], [7, 7], [0, 7], [7, 7]]


@pytest.mark.parametrize("keep_size", [True, False])
@pytest.mark.parametrize("factor", [1.5, 0.5])
def test_zoomed_items_have_one_size(keep_size: bool, factor: float) -> None:
    labels = torch.zeros(1, 24, 30, dtype=torch.int32)
    labels[:, 6:18, 9:21] = 70_001
    item = {"image": (labels > 0).float().expand(3, -1, -1), "instances": labels}
    zoom = RandZoomd(["image", "instances"], 1.0, factor, factor, keep_size=keep_size)
    found = zoom.set_random_state(0)(item)
    size = (24, 30) if keep_size else (int(24 * factor), int(30 * factor))
    assert tuple(found["image"].shape[1:]) == tuple(found["instances"].shape[1:]) == size
    assert set(found["instances"].unique().tolist()) == {0, 70_001}
    assert ((found["instances"] > 0) == (found["image"][:1] >= 0.5)).float().mean() > 0.9


def test_resized_items_keep_ids_beyond_half_precision() -> None:
    labels = torch.full((1, 8, 8), 2**24 - 1, dtype=torch.int32)
    found = Resized(["image", "instances"], [5, 7])({"image": torch.zeros(3, 8, 8), "instances": labels})
    assert found["image"].shape == (3, 5, 7)
    assert found["instances"].unique().tolist() == [2**24 - 1]
