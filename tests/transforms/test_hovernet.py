import numpy as np
import pytest
import torch
from monai.transforms import ComputeHoVerMaps

from nucsam_monai.transforms import HoVerNetInstancesd
from nucsam_monai.utils.errors import ConfigurationError


def discs(*places, side=64):
    rows, columns = np.mgrid[:side, :side]
    labels = np.zeros((side, side), dtype=np.int32)
    for name, (row, column, radius) in enumerate(places, start=1):
        labels[((rows - row) ** 2 + (columns - column) ** 2 <= radius**2) & (labels == 0)] = name
    return labels


def perfect(labels):
    """What a network that is always right gives."""
    distances = np.asarray(ComputeHoVerMaps()(labels[None]))
    return torch.from_numpy(np.concatenate([labels[None] > 0, (distances + 1) / 2]).astype(np.float32))


def test_touching_nuclei_are_parted():
    truth = discs((20, 18, 9), (20, 36, 9), (44, 30, 10))
    nuclei = HoVerNetInstancesd()({"pred": perfect(truth)})["pred"]
    found = nuclei.instances
    assert found.shape == (64, 64)
    assert found.dtype == np.int32
    assert set(np.unique(found)) == {0, 1, 2, 3}
    for name in (1, 2, 3):
        mine = truth == name
        matched = found == np.bincount(found[mine]).argmax()
        assert (mine & matched).sum() / (mine | matched).sum() > 0.9
    np.testing.assert_array_equal(nuclei.foreground > 0.5, truth > 0)


def test_image_without_nuclei_has_no_instances():
    found = HoVerNetInstancesd()({"pred": torch.full((3, 32, 32), 0.3)})["pred"].instances
    assert found.shape == (32, 32)
    assert not found.any()


def test_maps_that_say_nothing_leave_connected_components():
    maps = torch.full((3, 64, 64), 0.5)
    maps[0] = torch.from_numpy(discs((12, 12, 6), (40, 40, 6)) > 0)
    found = HoVerNetInstancesd()({"pred": maps})["pred"].instances
    assert np.unique(found).tolist() == [0, 1, 2]


def test_specks_are_left_out():
    truth = discs((20, 18, 9), (50, 50, 1))
    found = HoVerNetInstancesd()({"pred": perfect(truth)})["pred"].instances
    assert np.unique(found).tolist() == [0, 1]


def test_other_channels_are_refused():
    with pytest.raises(
        ConfigurationError, match=r"three channels \(3, H, W\) of HoVer-Net, found shape \(1,"
    ):
        HoVerNetInstancesd()({"pred": torch.zeros(1, 8, 8)})
