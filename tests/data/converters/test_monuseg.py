from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.data.converters import monuseg
from nucsam_monai.data.converters.monuseg import CLASSIC_PATIENTS, TEST_PATIENTS, patient_of, tissue_of
from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.label_files import read_image, read_instances
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from tests.data.originals import CLASSIC, aperio_xml, monuseg_members, noise, square, write_folder, write_zip

LATER = "TCGA-XS-A8TJ-01Z-00-DX1"
TESTS = ("TCGA-2Z-A9J9-01A-01-TS1", "TCGA-44-2665-01B-06-BS6")


def ids_of(folder: Path) -> dict[str, list[str]]:
    return {split: [item["id"] for item in items] for split, items in read_dataset(folder).splits.items()}


def test_classic_protocol(tmp_path: Path) -> None:
    train = write_zip(tmp_path / "train.zip", monuseg_members((*CLASSIC, LATER)))
    test = write_zip(tmp_path / "test.zip", monuseg_members(TESTS, as_test=True))
    summary = monuseg.convert(train, tmp_path / "out", test)
    assert ids_of(tmp_path / "out") == {
        "training": list(CLASSIC[:4]),
        "validation": [CLASSIC[4]],
        "test": list(TESTS),
    }
    assert validate_dataset(tmp_path / "out").splits == summary.splits
    dataset = read_dataset(tmp_path / "out")
    assert set(dataset.metadata.source) == {"train.zip", "test.zip"}
    assert dataset.metadata.protocol == "monuseg30"
    item = dataset.splits["training"][2]
    assert (item["group"], item["tissue"]) == ("TCGA-A7-A13E", "breast")
    assert dataset.splits["test"][0]["tissue"] == "kidney"
    np.testing.assert_array_equal(read_image(item["image"]), noise(20, 30, 3, 2))


def test_all_images_protocol(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train", monuseg_members((*CLASSIC, LATER)))
    monuseg.convert(train, tmp_path / "out", protocol="monuseg37", validation_fraction=0.34)
    assert ids_of(tmp_path / "out") == {
        "training": list(CLASSIC[:4]),
        "validation": [CLASSIC[4], LATER],
        "test": [],
    }
    assert "tissue" not in read_dataset(tmp_path / "out").splits["validation"][1]


@pytest.mark.parametrize(("overlap", "boundary", "count"), [("first", 8, 2), ("last", 5, 3)])
def test_overlaps_lines_and_hidden_regions(tmp_path: Path, overlap: str, boundary: int, count: int) -> None:
    """Squares at columns 2 to 8 and 5 to 11, a line, and a square of one pixel inside the first."""
    train = write_zip(tmp_path / "train.zip", monuseg_members(CLASSIC[:1]))
    summary = monuseg.convert(train, tmp_path / "out", overlap=overlap)
    expected = np.zeros((20, 30), np.int32)
    expected[3:9, 2:boundary], expected[3:9, boundary:11] = 1, 2
    if overlap == "last":
        expected[4, 3] = 3
    instances = read_instances(read_dataset(tmp_path / "out").splits["training"][0]["instances"])
    np.testing.assert_array_equal(instances, expected)
    assert summary.splits["training"].nuclei == count
    assert summary.dropped == {"regions with fewer than 3 vertices": 1, "hidden regions": 3 - count}


def test_pairs_are_made_by_name_whatever_the_folders_and_letter_case(tmp_path: Path) -> None:
    members = {
        "x/TCGA-A7-A13E-01Z-00-DX1.TIF": monuseg_members(CLASSIC[:1])[f"Root/Tissue Images/{CLASSIC[0]}.tif"],
        "y/z/tcga-a7-a13e-01z-00-dx1.xml": aperio_xml([square(1, 1, 2)]),
        "__MACOSX/x/._TCGA-A7-A13E-01Z-00-DX1.TIF": b"x",
        "x/.DS_Store": b"x",
    }
    summary = monuseg.convert(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    assert ids_of(tmp_path / "out")["training"] == ["TCGA-A7-A13E-01Z-00-DX1"]
    assert summary.splits["training"].nuclei == 1


def test_image_without_regions_is_normal(tmp_path: Path) -> None:
    members = monuseg_members(CLASSIC[:1]) | {f"Root/Annotations/{CLASSIC[0]}.xml": aperio_xml([])}
    summary = monuseg.convert(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    assert summary.splits["training"].nuclei == 0


def without(name: str) -> dict[str, bytes]:
    return {key: content for key, content in monuseg_members().items() if key != name}


WRONG = {
    "foreign": ({"readme.txt": b"x"}, r"not a MoNuSeg archive, .* readme\.txt"),
    "test as training": (monuseg_members(TESTS, as_test=True), "none of its 2 images .* --test_source"),
    "no annotation": (
        without(f"Root/Annotations/{CLASSIC[1]}.xml"),
        f"{CLASSIC[1]}: .* has no annotation",
    ),
    "no image": (
        without(f"Root/Tissue Images/{CLASSIC[1]}.tif"),
        f"{CLASSIC[1]}: .* has no image",
    ),
    "image twice": (monuseg_members() | {f"other/{CLASSIC[1]}.tif": b"x"}, f"two images of {CLASSIC[1]}"),
    "damaged image": (
        monuseg_members() | {f"Root/Tissue Images/{CLASSIC[4]}.tif": b"x"},
        "not a readable image",
    ),
    "damaged annotation": (
        monuseg_members() | {f"Root/Annotations/{CLASSIC[4]}.xml": b"x"},
        "not a readable XML",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_archives_leave_nothing_behind(tmp_path: Path, case: str) -> None:
    members, message = WRONG[case]
    path = write_zip(tmp_path / "a.zip", members)
    with pytest.raises(DatasetError, match=message):
        monuseg.convert(path, tmp_path / "data" / "out")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_test_images_in_training_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", monuseg_members())
    with pytest.raises(DatasetError, match="5 test images are in"):
        monuseg.convert(path, tmp_path / "out", path)


def test_a_folder_of_both_archives_is_refused(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    write_zip(tmp_path / "both" / "train.zip", monuseg_members())
    write_zip(tmp_path / "both" / "MoNuSegTestData.zip", monuseg_members(TESTS, as_test=True))
    with pytest.raises(DatasetError, match=r"2 images for testing .* --test_source"):
        monuseg.convert(tmp_path / "both", tmp_path / "out", protocol="monuseg37")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [{"protocol": "monuseg44"}, {"overlap": "none"}, {"validation_fraction": 15}]
)
def test_unknown_options_are_refused(tmp_path: Path, options: dict) -> None:
    path = write_zip(tmp_path / "a.zip", monuseg_members())
    with pytest.raises(ConfigurationError, match="expected"):
        monuseg.convert(path, tmp_path / "out", **options)


def test_tables_hold_the_published_images() -> None:
    assert len(CLASSIC_PATIENTS) == 30
    assert len(TEST_PATIENTS) == 14
    assert not set(CLASSIC_PATIENTS) & set(TEST_PATIENTS)


def test_patient_and_tissue_of_a_barcode() -> None:
    assert patient_of("TCGA-A7-A13E-01Z-00-DX1") == "TCGA-A7-A13E"
    assert tissue_of("TCGA-A7-A13E-01Z-00-DX1") == "breast"
    assert tissue_of("TCGA-HT-8564-01Z-00-DX1") == "brain"
    assert tissue_of("TCGA-XS-A8TJ-01Z-00-DX1") is None
