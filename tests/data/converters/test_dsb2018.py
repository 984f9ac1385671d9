from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.data.converters import dsb2018
from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.label_files import read_image, read_instances
from nucsam_monai.data.splits import random_split
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.utils.errors import DatasetError
from tests.data.originals import box, dsb_members, noise, png, write_folder, write_zip


def item_of(folder: Path, sample_id: str) -> dict[str, str]:
    items = [item for split in read_dataset(folder).splits.values() for item in split]
    return next(item for item in items if item["id"] == sample_id)


def test_split_images_and_source_are_recorded(tmp_path: Path) -> None:
    members = dsb_members()
    path = write_zip(tmp_path / "stage1_train.zip", members)
    summary = dsb2018.convert(path, tmp_path / "out")
    dataset = read_dataset(tmp_path / "out")
    split = {name: [item["id"] for item in items] for name, items in dataset.splits.items()}
    assert split == random_split("abcdefghij")
    assert [len(ids) for ids in split.values()] == [8, 1, 1]
    assert validate_dataset(tmp_path / "out").splits == summary.splits
    assert list(dataset.metadata.source) == ["stage1_train.zip"]
    assert dataset.metadata.conversion["overlap"] == "first"
    np.testing.assert_array_equal(
        read_image(item_of(tmp_path / "out", "c")["image"]), noise(12, 10, 4, 2)[..., :3]
    )


def test_traps_of_the_annotation(tmp_path: Path) -> None:
    members = dsb_members("a")
    shape = (12, 10)
    members["stage1_train/a/masks/m0.png"] = png(np.zeros(shape, np.uint8))  # empty
    members["stage1_train/a/masks/m3.png"] = png(box(shape, 3, 3, 6, 6))  # overlaps m1 and m2
    members["stage1_train/a/masks/m4.png"] = png(box(shape, 1, 1, 2, 2))  # hidden below m1
    members["stage1_train/a/masks/m5.png"] = png(box(shape, 10, 8, 12, 10), "RGBA")
    summary = dsb2018.convert(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    expected = np.zeros(shape, np.int32)
    for instance_id, mask in (
        (3, box(shape, 3, 3, 6, 6)),
        (2, box(shape, 4, 1, 8, 4)),
        (1, box(shape, 1, 1, 4, 4)),
        (4, box(shape, 10, 8, 12, 10)),
    ):
        expected[mask > 0] = instance_id
    np.testing.assert_array_equal(read_instances(item_of(tmp_path / "out", "a")["instances"]), expected)
    assert summary.dropped == {"empty masks": 1, "hidden masks": 1}
    assert read_dataset(tmp_path / "out").metadata.conversion["dropped"] == summary.dropped


@pytest.mark.parametrize("root", ["", "stage1_train/", "Some/Where/"])
def test_root_letter_case_and_leftovers_do_not_matter(tmp_path: Path, root: str) -> None:
    members = {
        name.replace("/masks/", "/Masks/").replace(".png", ".PNG"): data
        for name, data in dsb_members(root=root).items()
    }
    members["__MACOSX/stage1_train/a/images/._a.png"] = b"x"
    members[f"{root}.DS_Store"] = b"x"
    members[f"{root}readme.txt"] = b"x"
    for path in (write_zip(tmp_path / "a.zip", members), write_folder(tmp_path / "a", members)):
        summary = dsb2018.convert(path, tmp_path / f"out_{path.suffix}")
        assert sum(count.nuclei for count in summary.splits.values()) == 20


def test_test_archive_becomes_the_test_split(tmp_path: Path) -> None:
    train = write_zip(tmp_path / "train.zip", dsb_members())
    test = write_zip(tmp_path / "test.zip", dsb_members("xyz", root=""))
    summary = dsb2018.convert(train, tmp_path / "out", test)
    assert {name: count.images for name, count in summary.splits.items()} == {
        "training": 9,
        "validation": 1,
        "test": 3,
    }
    assert set(read_dataset(tmp_path / "out").metadata.source) == {"train.zip", "test.zip"}
    with pytest.raises(DatasetError, match=r"10 images are in .* too, first a"):
        dsb2018.convert(train, tmp_path / "again", train)


WRONG = {
    "foreign": ({"readme.txt": b"x"}, r"not a DSB2018 archive, .* readme\.txt"),
    "no masks": ({"a/images/a.png": png(noise(4, 4))}, "no masks"),
    "no image": ({**dsb_members("b", ""), "a/masks/a.png": png(noise(4, 4))}, "masks but no image"),
    "two images": ({**dsb_members("b", ""), "b/images/c.png": png(noise(4, 4))}, "more than one image"),
    "two roots": ({**dsb_members("b"), **dsb_members("c", "stage1_test/")}, "expected one folder"),
    "mask size": (
        {**dsb_members("b", ""), "b/masks/z.png": png(noise(4, 4, 1))},
        r"z\.png: mask is \(4, 4\)",
    ),
    "damaged mask": (
        {**dsb_members("b", ""), "b/masks/z.png": b"x"},
        r"a\.zip: b/masks/z\.png: not a readable",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_archives_leave_nothing_behind(tmp_path: Path, case: str) -> None:
    members, message = WRONG[case]
    path = write_zip(tmp_path / "a.zip", members)
    with pytest.raises(DatasetError, match=message):
        dsb2018.convert(path, tmp_path / "data" / "out")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
