"""Regions in windows: nuclei at the seams are neither cut nor doubled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.apps.monailabel.streaming import nuclei_of_region
from nucsam_monai.utils.image_source import ArrayImage, Region
from nucsam_monai.utils.nucleus import Nucleus, paint_nuclei
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances
from tests.apps.monailabel.analytic import dark_nuclei, discs


def same_up_to_ids(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(20, 150), st.integers(20, 150))
def test_windows_find_what_the_whole_image_shows(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    radius = int(rng.integers(1, 7))
    centres = rng.integers(0, [width, height], (int(rng.integers(0, 25)), 2))
    image = discs(height, width, [tuple(centre) for centre in centres.tolist()], radius)
    truth = dark_nuclei(image).instances
    # Discs may touch and grow together; what is larger than the overlap allows is not promised to stay whole.
    small = prediction_from_instances(truth).table
    if any(
        max(row["box_x_max_px"] - row["box_x_min_px"], row["box_y_max_px"] - row["box_y_min_px"]) > 13
        for row in small
    ):
        return
    nuclei = list(nuclei_of_region(ArrayImage(image), Region(0, 0, width, height), dark_nuclei, 60, 30))
    assert len(nuclei) == truth.max()
    assert same_up_to_ids(paint_nuclei(nuclei, (height, width)), truth)


def test_one_window_keeps_ids_classes_and_scores() -> None:
    instances = np.array([[5, 5, 0], [0, 0, 2]], dtype=np.int32)
    prediction = prediction_from_instances(
        instances, scores=np.array([0.25, 0.5]), class_ids=np.array([1, 0]), class_names=("a", "b")
    )
    source = ArrayImage(np.zeros((2, 3, 3), dtype=np.uint8))
    nuclei = list(nuclei_of_region(source, Region(0, 0, 3, 2), lambda _: prediction, 8, 2))
    assert [(one.class_id, one.score) for one in nuclei] == [(1, 0.25), (0, 0.5)]
    assert paint_nuclei(nuclei, (2, 3)).tolist() == [[2, 2, 0], [0, 0, 1]]


def test_no_more_than_a_window_is_read() -> None:
    class Counted(ArrayImage):
        largest = 0

        def read(self, region: Region) -> np.ndarray:
            self.largest = max(self.largest, region.width * region.height)
            return super().read(region)

    source = Counted(discs(300, 200, [(50, 50), (99, 180)], 8))
    assert len(list(nuclei_of_region(source, Region(10, 20, 180, 250), dark_nuclei, 64, 32))) == 2
    assert source.largest == 64 * 64


def test_windows_that_disagree_leave_no_pixel_to_two_nuclei() -> None:
    """Each window paints the nucleus at its seam a little larger than its neighbour does."""
    image = discs(64, 160, [(66, 30), (90, 30)], 9)
    calls: list[int] = []

    def grown(pixels: np.ndarray) -> NucleiPrediction:
        calls.append(1)
        label_map = dark_nuclei(pixels).instances.copy()
        for _ in range(len(calls)):
            label_map[:, :-1] = np.where(label_map[:, :-1] == 0, label_map[:, 1:], label_map[:, :-1])
        return prediction_from_instances(label_map)

    nuclei = list(nuclei_of_region(ArrayImage(image), Region(0, 0, 160, 64), grown, 100, 40))
    claims = np.zeros((64, 160), dtype=int)
    for one in nuclei:
        x0, y0, x1, y1 = one.box
        claims[y0:y1, x0:x1] += one.mask
    assert len(nuclei) == 2
    assert claims.max() == 1


def test_a_region_without_nuclei() -> None:
    source = ArrayImage(discs(130, 90, [], 1))
    assert not list(nuclei_of_region(source, Region(0, 0, 90, 130), dark_nuclei, 64, 16))


@pytest.mark.parametrize(("width", "height", "expected"), [(9, 9, 9), (4, 9, 6), (3, 3, 2), (0, 5, 0)])
def test_cut_off(width: int, height: int, expected: int) -> None:
    nucleus = Nucleus(2, 1, np.ones((3, 3), dtype=bool))
    assert nucleus.cut_off(width, height).area_px == expected
    assert nucleus.moved(-3, -2).cut_off(9, 9).box == (0, 0, 2, 2)
