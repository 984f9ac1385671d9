"""What is measured on a label map, against one nucleus at a time."""

import numpy as np
import pytest

from nucsam_monai.wsi.nuclei_table import measure
from tests.wsi.slides import random_nuclei


def test_measures_are_those_of_each_nucleus_alone() -> None:
    truth = random_nuclei(160, 60, seed=5)
    truth[truth == 7] = 0  # ids may have gaps
    truth[100:, :30] = np.where(truth[100:, :30] > 0, truth[100:, :30], 61)  # with holes and ragged
    pixels = np.random.default_rng(0).integers(0, 256, (*truth.shape, 3), dtype=np.uint8)
    ids = np.unique(truth[truth > 0])
    found = measure(truth, ids, pixels, 3000, 20_000)
    for n, nucleus in enumerate(ids):
        y, x = np.nonzero(truth == nucleus)
        assert found.area[n] == len(x)
        assert (found.sum_x[n], found.sum_y[n]) == ((x + 3000).sum(), (y + 20_000).sum())
        np.testing.assert_array_equal(found.colour[n], pixels[y, x].mean(axis=0))
        moments, directions = np.linalg.eigh(np.cov(x, y, bias=True) + np.eye(2) / 12)
        np.testing.assert_allclose(found.axes[n], 4 * np.sqrt(moments[::-1]))
        along = np.array([np.cos(found.orientation[n]), np.sin(found.orientation[n])])
        assert abs(along @ directions[:, 1]) == pytest.approx(1) or np.isclose(*moments)


def test_a_map_without_nuclei_has_no_measures() -> None:
    found = measure(np.zeros((5, 6), np.int32), np.zeros(0, np.int32), np.zeros((5, 6, 3), np.uint8), 0, 0)
    assert [len(values) for values in found] == [0] * 6
