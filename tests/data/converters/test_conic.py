from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.data.converters import conic
from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.label_files import read_classes, read_image, read_instances
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.utils.errors import DatasetError
from tests.data.original_conic import PATCHES, SIZE, conic_labels, conic_members
from tests.data.original_pannuke import npy
from tests.data.originals import noise, write_folder, write_zip


def source_image(patch: str) -> str:
    return patch.split("-")[0]


@pytest.mark.parametrize("root", ["", "CoNIC_Challenge/", "x/y/"])
def test_ids_classes_and_groups(tmp_path: Path, root: str) -> None:
    members = conic_members(root)
    for path in (write_zip(tmp_path / "a.zip", members), write_folder(tmp_path / "a", members)):
        output = tmp_path / f"out{path.suffix}"
        summary = conic.convert(path, output)
        assert validate_dataset(output).splits == summary.splits
        items = {item["id"]: item for item in read_dataset(output).items()}
        assert set(items) == set(PATCHES)
        item = items["crag_1-0001"]
        assert (item["group"], item["tissue"]) == ("crag_1", "colon")
        expected = (conic_labels()[0, ..., 0] > 0).astype(int) + (conic_labels()[0, ..., 0] == 40)
        np.testing.assert_array_equal(read_instances(item["instances"]), expected)
        assert read_classes(item["classes"]) == {1: 5, 2: 0}
        np.testing.assert_array_equal(
            read_image(item["image"]), noise(SIZE, SIZE, 3, PATCHES.index("crag_1-0001"))
        )
        assert read_classes(items[PATCHES[1]]["classes"]) == {}


def test_protocols_keep_source_images_together_and_cohorts_in_proportion(tmp_path: Path) -> None:
    conic.convert(write_folder(tmp_path / "a", conic_members()), tmp_path / "out")
    protocols = read_dataset(tmp_path / "out").metadata.protocols
    expected = {
        "by_source_image": (16, 2, 2),
        "by_source_image_70_15_15": (14, 3, 3),
        "challenge_80_20": (16, 4, 0),
    }
    assert list(protocols) == list(expected)
    for name, counts in expected.items():
        splits = protocols[name].splits
        images = {split: {source_image(patch) for patch in ids} for split, ids in splits.items()}
        assert tuple(len(part) for part in images.values()) == counts
        assert sum(counts) == len(set.union(*images.values()))
        assert sorted(patch for ids in splits.values() for patch in ids) == sorted(PATCHES)
    assert protocols["by_source_image"].training == protocols["challenge_80_20"].training
    training = {source_image(patch) for patch in protocols["challenge_80_20"].training}
    assert [
        sum(image.startswith(cohort) for image in training) for cohort in ("consep", "crag", "dpath")
    ] == [
        4,
        8,
        4,
    ]


def test_split_of_the_challenge_is_that_of_its_baseline(tmp_path: Path) -> None:
    """The first split of scikit-learn's StratifiedShuffleSplit over these source images and cohorts."""
    conic.convert(write_folder(tmp_path / "a", conic_members()), tmp_path / "out")
    ours = read_dataset(tmp_path / "out").metadata.protocols["challenge_80_20"].validation
    assert {source_image(patch) for patch in ours} == {"consep_4", "crag_1", "crag_6", "dpath_5"}


def changed(name: str, content: bytes) -> dict[str, bytes]:
    return {**conic_members(), name: content}


LABELS = conic_labels()
LABELS[3, 1:3, 1:3, 1] = 7
UNCLASSED = conic_labels()
UNCLASSED[4, 1:3, 1:3, 1] = 0
TABLE = conic_members()["patch_info.csv"]
WRONG = {
    "foreign": ({"readme.txt": b"x"}, r"not CoNIC, .* readme\.txt"),
    "no labels": ({k: v for k, v in conic_members().items() if k != "labels.npy"}, "not CoNIC"),
    "no table": (
        {k: v for k, v in conic_members().items() if k != "patch_info.csv"},
        "which patches overlap",
    ),
    "twice": ({**conic_members(), **conic_members("copy/")}, "expected one folder"),
    "no column": (changed("patch_info.csv", b"name\na_1-0000\n"), "no column 'patch_info'"),
    "empty table": (changed("patch_info.csv", b""), "no column 'patch_info'"),
    "binary table": (changed("patch_info.csv", b"\xff\xfe\x00"), "not a readable table"),
    "no index": (changed("patch_info.csv", TABLE + b"crag_3\n"), "patch 'crag_3', expected"),
    "one row more": (changed("patch_info.csv", TABLE + b"crag_3-0007\n"), "and 32 patches"),
    "same patch": (changed("patch_info.csv", TABLE.replace(b"crag_1-0001", b"crag_1-0000")), "occurs twice"),
    "classes missing": (changed("labels.npy", npy(LABELS[..., 0])), r"labels \(31, 8, 8\)"),
    "unknown class": (changed("labels.npy", npy(LABELS)), f"{PATCHES[3]}: class 7, expected 1 to 6"),
    "no class": (changed("labels.npy", npy(UNCLASSED)), f"{PATCHES[4]}: 1 instances have no class, first 2"),
    "pickled": (changed("labels.npy", npy(np.array([None], object))), "never unpickled"),
    "cut": (changed("images.npy", conic_members()["images.npy"][:-1]), "ends in row 30 of 31"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sources_leave_nothing_behind(tmp_path: Path, case: str) -> None:
    members, message = WRONG[case]
    source = write_folder(tmp_path / "a", members)
    with pytest.raises(DatasetError, match=message):
        conic.convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
