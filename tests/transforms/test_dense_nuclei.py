import numpy as np
import pytest
import torch

from nucsam_monai.transforms import DenseNucleid
from nucsam_monai.utils.errors import ConfigurationError


def dense(instances: np.ndarray, cell: int = 1) -> np.ndarray:
    return DenseNucleid(pixels_per_cell=cell)({"instances": torch.from_numpy(instances)[None]})[
        "dense"
    ].numpy()


def expected(instances: np.ndarray) -> np.ndarray:
    """The same, pixel by pixel."""
    found = np.zeros((3, *instances.shape), dtype=np.float32)
    for nucleus in set(instances.ravel().tolist()) - {0}:
        rows, columns = np.nonzero(instances == nucleus)
        for row, column in zip(rows, columns, strict=True):
            found[0, row, column] = 1
            for channel, own, all_of_it in ((1, column, columns), (2, row, rows)):
                offset = own - all_of_it.mean()
                extent = (
                    (all_of_it - all_of_it.mean()).max()
                    if offset > 0
                    else (all_of_it.mean() - all_of_it).max()
                )
                found[channel, row, column] = offset / extent if offset else 0
    return found


def test_the_target_is_the_mask_and_the_distances_from_each_centre() -> None:
    instances = np.zeros((24, 31), dtype=np.int32)
    y, x = np.mgrid[:24, :31]
    instances[(y - 8) ** 2 + (x - 9) ** 2 <= 36] = 1
    instances[10:20, 15:29] = 7
    instances[0, 30] = 3  # one pixel has no extent
    np.testing.assert_allclose(dense(instances), expected(instances), atol=1e-5)


def test_the_pixel_in_the_middle_speaks_for_its_cell() -> None:
    instances = np.random.default_rng(1).integers(0, 3, (9, 12)).repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_allclose(dense(instances, cell=4), dense(instances[2::4, 2::4].copy()))
    np.testing.assert_allclose(dense(instances[:35, :47], cell=4), dense(instances[2:32:4, 2:44:4].copy()))


def test_an_image_without_nuclei_is_all_zero() -> None:
    assert not dense(np.zeros((8, 8), dtype=np.int32), cell=2).any()


def test_a_cell_of_no_pixel_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="pixels_per_cell 0: expected 1 or more"):
        DenseNucleid(pixels_per_cell=0)
