from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.data.converters import tnbc
from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.utils.errors import DatasetError
from tests.data.converters.folders import image_of, instances_of, item_of, protocol_sizes
from tests.data.encoded import jpeg, labels
from tests.data.original_tnbc import tnbc_mask, tnbc_members
from tests.data.originals import noise, png, write_folder, write_zip


def test_components_become_nuclei_and_alpha_is_dropped(tmp_path: Path) -> None:
    members = tnbc_members() | {"__MACOSX/TNBC/Slide_01/._01_1.png": b"x"}
    expected = np.zeros((8, 10), np.int32)
    expected[1:3, 1:3], expected[3:5, 3:5], expected[6, 8] = 1, 1, 2
    for path in (write_folder(tmp_path / "a", members), write_zip(tmp_path / "a.zip", members)):
        output = tmp_path / f"out{path.suffix}"
        summary = tnbc.convert(path, output)
        assert validate_dataset(output).splits == summary.splits
        assert sum(count.nuclei for count in summary.splits.values()) == 100
        np.testing.assert_array_equal(instances_of(output, "03_2"), expected)
        np.testing.assert_array_equal(image_of(output, "03_2"), noise(8, 10, 4, 302)[..., :3])
        item = item_of(output, "03_2")
        assert (item["tissue"], item["group"]) == ("breast", "slide_03")


def test_plain_split_divides_patients_and_the_other_does_not(tmp_path: Path) -> None:
    tnbc.convert(write_folder(tmp_path / "a", tnbc_members()), tmp_path / "out", protocol="by_patient")
    dataset = read_dataset(tmp_path / "out")
    assert protocol_sizes(tmp_path / "out")["random_40_5_5"] == (40, 5, 5)
    assert dataset.metadata.protocols["random_40_5_5"].divides_groups
    assert not dataset.metadata.protocols["by_patient"].divides_groups
    groups = [{item["group"] for item in items} for items in dataset.splits.values()]
    assert sum(map(len, groups)) == 11
    assert all(groups)
    assert sum(protocol_sizes(tmp_path / "out")["by_patient"]) == 50


def test_later_slides_are_in_no_split(tmp_path: Path) -> None:
    members = tnbc_members() | {
        "TNBC_NucleiSegmentation/Slide_14/14_1.png": png(noise(8, 10)),
        "TNBC_NucleiSegmentation/GT_14/14_1.png": png(tnbc_mask()),
    }
    summary = tnbc.convert(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    assert summary.splits["unused"].images == 1
    assert "tissue" not in item_of(tmp_path / "out", "14_1")


def test_traps_of_files_and_masks(tmp_path: Path) -> None:
    """Other root and letter case, names without the slide, a JPEG called .png, a map of ids, an empty mask."""
    members = {
        "a/b/SLIDE_1/1.PNG": jpeg(noise(8, 10)),
        "a/b/gt_1/1.png": png(labels((8, 10), 9, 4).astype(np.uint8)),
        "a/b/SLIDE_2/1.PNG": png(noise(8, 10)),
        "a/b/gt_2/1.png": png(np.zeros((8, 10), np.uint8)),
        "a/b/SLIDE_2/2.PNG": png(noise(8, 10)),
        "a/b/gt_2/2.png": png(tnbc_mask(), "RGBA"),
    }
    summary = tnbc.convert(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    np.testing.assert_array_equal(instances_of(tmp_path / "out", "01_1"), labels((8, 10), 2, 1))
    assert instances_of(tmp_path / "out", "02_1").max() == 0
    assert instances_of(tmp_path / "out", "02_2").max() == 2
    assert sum(count.nuclei for count in summary.splits.values()) == 4


GT = "TNBC_NucleiSegmentation/GT_01/01_1.png"
WRONG = {
    "foreign": ({"readme.txt": b"x"}, "not a TNBC archive"),
    "no mask": (
        {name: content for name, content in tnbc_members(slides=1).items() if name != GT},
        r"first 01_1: .*Slide_01/01_1\.png has no label map",
    ),
    "no image": (tnbc_members(slides=1) | {"GT_02/02_1.png": b"x"}, r"GT_02/02_1\.png has no image"),
    "twice": (tnbc_members(slides=1) | {"copy/Slide_01/1.png": b"x"}, "two images of 01_1"),
    "shape": (tnbc_members(slides=1) | {GT: png(noise(4, 4, 1))}, r"GT_01/01_1\.png: label map is \(4, 4\)"),
    "colours": (tnbc_members(slides=1) | {GT: png(noise(8, 10))}, "one id per pixel"),
    "lossy": (tnbc_members(slides=1) | {GT: jpeg(tnbc_mask())}, "a JPEG, which changes ids"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sources_leave_nothing_behind(tmp_path: Path, case: str) -> None:
    members, message = WRONG[case]
    path = write_zip(tmp_path / "a.zip", members)
    with pytest.raises(DatasetError, match=message):
        tnbc.convert(path, tmp_path / "data" / "out")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
