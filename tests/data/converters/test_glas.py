from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.data.converters import glas
from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from tests.data.converters.folders import image_of, instances_of, item_of, protocol_sizes
from tests.data.encoded import bmp, jpeg, labels
from tests.data.original_glas import glas_members
from tests.data.originals import noise, png, write_folder, write_zip

ROOT = "Warwick QU Dataset (Released 2016_07_08)/"


def test_parts_grades_and_glands(tmp_path: Path) -> None:
    members = glas_members()
    for path in (write_folder(tmp_path / "a", members), write_zip(tmp_path / "a.zip", members)):
        output = tmp_path / f"out{path.suffix}"
        summary = glas.convert(path, output)
        assert validate_dataset(output).splits == summary.splits
        assert protocol_sizes(output) == {
            "glas": (76, 9, 80),
            "glas_testA": (76, 9, 60),
            "glas_testB": (76, 9, 20),
        }
        np.testing.assert_array_equal(instances_of(output, "testB_7"), labels((6, 9), 1, 2))
        np.testing.assert_array_equal(image_of(output, "testB_7"), noise(6, 9, 3, 7))
        item = item_of(output, "testB_7")
        assert (item["tissue"], item["group"]) == ("benign colon", "patient_7")
        assert item_of(output, "train_2")["tissue"] == "malignant colon"
        dataset = read_dataset(output)
        assert dataset.metadata.class_names == ("gland",)
        assert all(protocol.divides_groups for protocol in dataset.metadata.protocols.values())


def test_without_grades_patients_are_unknown(tmp_path: Path) -> None:
    members = glas_members()
    del members[f"{ROOT}Grade.csv"]
    glas.convert(write_zip(tmp_path / "a.zip", members), tmp_path / "out", validation_fraction=0)
    dataset = read_dataset(tmp_path / "out")
    assert protocol_sizes(tmp_path / "out")["glas"] == (85, 0, 80)
    assert not dataset.metadata.protocols["glas"].divides_groups
    assert {item["tissue"] for item in dataset.items()} == {"colon"}
    assert not any("group" in item for item in dataset.items())


def test_undivided_patients_are_seen(tmp_path: Path) -> None:
    members = {name: content for name, content in glas_members().items() if "_1" in name}
    members["Grade.csv"] = (
        b"\xef\xbb\xbfname,patient ID, grade (GlaS), grade (x)\ntestA_1,4,Benign,\nTRAIN_1.bmp,5,benign,\n\n"
    )
    glas.convert(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    assert not read_dataset(tmp_path / "out").metadata.protocols["glas"].divides_groups
    assert item_of(tmp_path / "out", "train_1")["group"] == "patient_5"
    assert "group" not in item_of(tmp_path / "out", "testB_1")


def test_other_formats_and_letter_case(tmp_path: Path) -> None:
    gland = labels((6, 9), 3).astype(np.uint8)
    members = {
        "TRAIN_1.PNG": jpeg(noise(6, 9)),
        "Train_1_Anno.PNG": png(gland, "RGB"),
        "x/testa_01.bmp": bmp(noise(6, 9)),
        "x/testA_1_anno.bmp": bmp(np.zeros((6, 9), np.uint8)),
    }
    glas.convert(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    assert instances_of(tmp_path / "out", "train_1").max() == 1
    assert instances_of(tmp_path / "out", "testA_1").max() == 0
    assert set(protocol_sizes(tmp_path / "out")) == {"glas", "glas_testA"}


def test_unusable_fraction_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", glas_members())
    with pytest.raises(ConfigurationError, match="expected a number from 0 to 1"):
        glas.convert(path, tmp_path / "out", validation_fraction=10)


def changed(name: str, content: bytes) -> dict[str, bytes]:
    return glas_members() | {f"{ROOT}{name}": content}


WRONG = {
    "foreign": ({"readme.txt": b"x"}, "not a GlaS archive"),
    "no annotation": (
        {name: content for name, content in glas_members().items() if name != f"{ROOT}testA_3_anno.bmp"},
        r"first testA_3: .*testA_3\.bmp has no label map",
    ),
    "no image": (changed("train_99_anno.bmp", b"x"), r"train_99_anno\.bmp has no image"),
    "twice": (changed("copy/train_01.bmp", b"x"), "two images of train_1"),
    "shape": (changed("train_4_anno.bmp", bmp(noise(4, 4, 1))), r"train_4_anno\.bmp: label map is \(4, 4\)"),
    "colours": (changed("train_4_anno.bmp", bmp(noise(6, 9))), "one id per pixel"),
    "columns": (changed("Grade.csv", b"a,b\n"), r"Grade\.csv: columns \['a', 'b'\], expected name"),
    "no columns": (changed("Grade.csv", b""), r"Grade\.csv: columns \[\], expected name"),
    "row": (changed("Grade.csv", b"name,patient ID,grade (GlaS)\ntrain_1\n"), r"row \['train_1'\], expected"),
    "grade": (changed("Grade.csv", b"name,patient ID,grade (GlaS)\ntrain_1,2,good\n"), "benign or malignant"),
    "two tables": (changed("copy/Grade.csv", b"x"), r"2 files Grade\.csv"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sources_leave_nothing_behind(tmp_path: Path, case: str) -> None:
    members, message = WRONG[case]
    path = write_zip(tmp_path / "a.zip", members)
    with pytest.raises(DatasetError, match=message):
        glas.convert(path, tmp_path / "data" / "out")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
