from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.data.converters import cpm17
from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.utils.errors import DatasetError
from tests.data.converters.folders import image_of, instances_of, protocol_sizes
from tests.data.encoded import labels, mat
from tests.data.original_cpm17 import cpm17_members
from tests.data.originals import noise, png, write_folder, write_zip


def test_parts_of_the_same_names(tmp_path: Path) -> None:
    members = cpm17_members()
    for path in (write_folder(tmp_path / "a", members), write_zip(tmp_path / "a.zip", members)):
        output = tmp_path / f"out{path.suffix}"
        summary = cpm17.convert(path, output)
        assert validate_dataset(output).splits == summary.splits
        assert protocol_sizes(output) == {"cpm17_15": (27, 5, 32), "cpm17_plain": (32, 0, 32)}
        np.testing.assert_array_equal(image_of(output, "train_image_07"), noise(6, 9, 3, 7))
        np.testing.assert_array_equal(image_of(output, "test_image_07"), noise(6, 9, 3, 107))
        np.testing.assert_array_equal(instances_of(output, "test_image_07"), labels((6, 9), 2, 1))


def test_validation_images_depend_on_the_seed_only(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "a", cpm17_members())
    drawn = []
    for number, seed in enumerate((1, 1, 2)):
        cpm17.convert(path, tmp_path / f"out{number}", seed=seed)
        drawn.append(read_dataset(tmp_path / f"out{number}").metadata.protocols["cpm17_15"].validation)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("train", "test"), [("Train.zip/", "Test.zip/"), ("CPM17_training/", "CPM17_testing/")]
)
def test_folder_names_letter_case_and_a_folder_of_archives(tmp_path: Path, train: str, test: str) -> None:
    parts = {train: {}, test: {}}
    for name, content in cpm17_members("", 4).items():
        part, _, rest = name.partition("/")
        parts[train if part == "train" else test][rest.lower().replace(".mat", ".MAT")] = content
    for folder, members in parts.items():
        (tmp_path / "a").mkdir(exist_ok=True)
        if folder.endswith(".zip/"):
            write_zip(tmp_path / "a" / folder[:-1], members)
        else:
            write_folder(tmp_path / "a" / folder, members)
    cpm17.convert(tmp_path / "a", tmp_path / "out", protocol="cpm17_plain")
    assert protocol_sizes(tmp_path / "out")["cpm17_plain"] == (4, 0, 4)


def test_image_without_nuclei_is_normal(tmp_path: Path) -> None:
    members = cpm17_members("", 2) | {"test/Labels/image_00.mat": mat(inst_map=np.zeros((6, 9)))}
    summary = cpm17.convert(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    assert summary.splits["test"].nuclei == 2


LABELS = "cpm17/train/Labels/image_00.mat"
VERSION_7_3 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"


def changed(content: bytes) -> dict[str, bytes]:
    return cpm17_members(count=2) | {LABELS: content}


WRONG = {
    "foreign": ({"readme.txt": b"x"}, "not a CPM-17 archive"),
    "no labels": (
        {name: content for name, content in cpm17_members(count=2).items() if name != LABELS},
        r"first train_image_00: .*train/Images/image_00\.png has no label map",
    ),
    "no part": ({"Images/a.png": png(noise(4, 4)), "Labels/a.mat": b"x"}, "in no folder train or test"),
    "two images": (cpm17_members(count=2) | {"train/Images/image_00.tif": b"x"}, "two images of train_image"),
    "variable": (
        changed(mat(type_map=np.zeros((6, 9)), other=1)),
        "expected 'inst_map' or a single 2-D array of numbers, found type_map, other",
    ),
    "not a map": (changed(mat(inst_map="text")), "found none"),
    "negative": (changed(mat(inst_map=-labels((6, 9), 1))), "ids from -1 to 0"),
    "not a number": (changed(mat(inst_map=np.full((6, 9), np.nan))), "expected whole ids"),
    "shape": (changed(mat(inst_map=labels((9, 6), 1))), r"label map is \(9, 6\), its image is \(6, 9\)"),
    "version": (changed(VERSION_7_3.ljust(512, b"\x00")), r"MATLAB 7\.3 .* not supported"),
    "damaged": (changed(b"x" * 300), r"image_00\.mat: damaged"),
    "truncated": (changed(mat(inst_map=labels((6, 9), 1))[:200]), r"image_00\.mat: damaged"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sources_leave_nothing_behind(tmp_path: Path, case: str) -> None:
    members, message = WRONG[case]
    path = write_zip(tmp_path / "a.zip", members)
    with pytest.raises(DatasetError, match=message):
        cpm17.convert(path, tmp_path / "data" / "out")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
