from pathlib import Path

import numpy as np
import pytest
import tifffile

from nucsam_monai.io import write_label_image
from nucsam_monai.utils.errors import ConfigurationError


@pytest.mark.parametrize(
    ("highest", "stored"), [(0, np.uint16), (65_535, np.uint16), (65_536, np.int32), (2**31 - 1, np.int32)]
)
def test_ids_come_back_in_the_smallest_type(tmp_path: Path, highest: int, stored: type) -> None:
    instances = np.zeros((33, 47), dtype=np.int64)
    instances[5:9, 30:] = highest
    write_label_image(tmp_path / "a.tif", instances)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].compression.name == "ADOBE_DEFLATE"
        found = file.asarray()
    assert found.dtype == stored
    np.testing.assert_array_equal(found, instances)


def test_more_than_65535_nuclei_come_back(tmp_path: Path) -> None:
    instances = np.arange(300 * 300, dtype=np.int32).reshape(300, 300)
    write_label_image(tmp_path / "a.tif", instances)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), instances)


@pytest.mark.parametrize(
    "instances",
    [
        np.zeros((4, 5)),
        np.zeros((4, 5, 1), dtype=int),
        np.zeros((0, 5), dtype=int),
        np.full((4, 5), -1),
        np.full((4, 5), 2**31),
    ],
)
def test_what_is_no_label_map_is_refused(tmp_path: Path, instances: np.ndarray) -> None:
    with pytest.raises(ConfigurationError, match=r"a\.tif"):
        write_label_image(tmp_path / "a.tif", instances)
    assert list(tmp_path.iterdir()) == []
