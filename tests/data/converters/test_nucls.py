from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.data.converters import nucls
from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.label_files import read_classes
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.utils.errors import DatasetError
from tests.data.originals import noise, nucls_members, png, write_folder, write_zip


@pytest.mark.parametrize("prefix", ["", "nucls/"])
def test_splits_as_given_and_class_by_majority(tmp_path: Path, prefix: str) -> None:
    members = {prefix + name: content for name, content in nucls_members().items()}
    for path in (write_folder(tmp_path / "a", members), write_zip(tmp_path / "a.zip", members)):
        output = tmp_path / f"out{path.suffix}"
        summary = nucls.convert(path, output)
        assert validate_dataset(output).splits == summary.splits
        dataset = read_dataset(output)
        assert {split: len(items) for split, items in dataset.splits.items()} == {
            "training": 2,
            "validation": 0,
            "test": 1,
        }
        assert dataset.metadata.class_names == ("Non-Tumor", "Tumor")
        # Ids 2 and 9 became 1 and 2; three of the four pixels of 9 say tumour.
        assert read_classes(dataset.splits["test"][0]["classes"]) == {1: 0, 2: 1}


def test_tile_without_nuclei_is_normal(tmp_path: Path) -> None:
    members = nucls_members()
    empty = np.zeros((8, 8), np.uint8)
    members |= {"test/instances/test_1.png": png(empty), "test/classes/test_1.png": png(empty)}
    assert nucls.convert(write_folder(tmp_path / "a", members), tmp_path / "out").splits["test"].nuclei == 0


def changed(**files: bytes) -> dict[str, bytes]:
    return nucls_members() | {name.replace("__", "/") + ".png": content for name, content in files.items()}


WRONG = {
    "foreign": ({"readme.txt": b"x"}, "not NuCLS tiles"),
    "incomplete": (changed(train__images__new=png(noise(8, 8))), "new has no instances and no classes"),
    "twice": ({**nucls_members(), "b/train/images/train_1.png": b"x"}, "occurs twice"),
    "no names": (
        {k: v for k, v in nucls_members().items() if k != "label_map.yaml"},
        r"0 files label_map\.yaml",
    ),
    "not YAML": ({**nucls_members(), "label_map.yaml": b"{"}, "not readable as YAML"),
    "not a map": ({**nucls_members(), "label_map.yaml": b"a: b"}, "expected a map"),
    "unknown value": (changed(test__classes__test_1=png(np.full((8, 8), 3, np.uint8))), r"values \[3\]"),
    "no class": (changed(test__classes__test_1=png(np.zeros((8, 8), np.uint8))), "2 instances have no class"),
    "shape": (changed(test__classes__test_1=png(np.zeros((4, 8), np.uint8))), r"class map is \(4, 8\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sources_leave_nothing_behind(tmp_path: Path, case: str) -> None:
    members, message = WRONG[case]
    source = write_folder(tmp_path / "a", members)
    with pytest.raises(DatasetError, match=message):
        nucls.convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
