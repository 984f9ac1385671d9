from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.data.converters import segpc
from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from tests.data.converters.folders import classes_of, image_of, instances_of, protocol_sizes
from tests.data.encoded import bmp, jpeg
from tests.data.original_segpc import SHAPE, cell_mask, segpc_members
from tests.data.originals import noise, write_folder, write_zip
from tests.pickling_pool import without_processes


def test_parts_are_instances_with_classes(tmp_path: Path) -> None:
    """Cell 2 from column 1, and over it cell 10 from column 4, which hides a column of the first nucleus."""
    members = segpc_members()
    expected = np.zeros(SHAPE, np.int32)
    expected[2:8, 1:4], expected[2:8, 4:10] = 2, 4
    expected[4:6, 3:5], expected[4:6, 6:8] = 1, 3
    for path in (write_folder(tmp_path / "a", members), write_zip(tmp_path / "a.zip", members)):
        output = tmp_path / f"out{path.suffix}"
        summary = segpc.convert(path, output)
        assert validate_dataset(output).splits == summary.splits
        assert read_dataset(output).metadata.class_names == ("nucleus", "cytoplasm")
        np.testing.assert_array_equal(instances_of(output, "validation_3"), expected)
        np.testing.assert_array_equal(image_of(output, "validation_3"), noise(*SHAPE, 3, 3))
        assert classes_of(output, "validation_3") == {1: 0, 2: 1, 3: 0, 4: 1}


def test_class_maps_are_the_semantic_masks(tmp_path: Path) -> None:
    """Nuclei of all cells over the cytoplasms of all cells, whatever the order of the files."""
    rng = np.random.default_rng(0)
    masks = rng.choice([0, 20, 40], size=(4, *SHAPE), p=[0.6, 0.25, 0.15]).astype(np.uint8)
    members = {"train/x/1_a.bmp": bmp(noise(*SHAPE))}
    members |= {f"train/y/1_a_{cell}.bmp": bmp(mask) for cell, mask in enumerate(masks)}
    segpc.convert(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    instances, classes = (
        instances_of(tmp_path / "out", "train_1_a"),
        classes_of(tmp_path / "out", "train_1_a"),
    )
    nuclei = np.isin(instances, [key for key, value in classes.items() if value == 0])
    np.testing.assert_array_equal(nuclei, (masks == 40).any(0))
    np.testing.assert_array_equal((instances > 0) & ~nuclei, (masks == 20).any(0) & ~(masks == 40).any(0))


@pytest.mark.parametrize("target", ["cell", "nucleus", "cytoplasm"])
def test_one_kind_of_instances(tmp_path: Path, target: str) -> None:
    expected = np.zeros(SHAPE, np.int32)
    if target == "cell":
        expected[2:8, 1:4], expected[2:8, 4:10] = 1, 2
    elif target == "nucleus":
        expected[4:6, 3:5], expected[4:6, 6:8] = 1, 2
    else:
        expected[2:8, 1:4], expected[2:8, 4:10] = 1, 2
        expected[4:6, 3:5], expected[4:6, 6:8] = 0, 0
    segpc.convert(write_zip(tmp_path / "a.zip", segpc_members()), tmp_path / "out", target=target)
    np.testing.assert_array_equal(instances_of(tmp_path / "out", "train_1"), expected)
    metadata = read_dataset(tmp_path / "out").metadata
    assert (metadata.class_names, metadata.conversion["target"]) == ((target,), target)
    validate_dataset(tmp_path / "out")


def test_protocols_with_two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archives of the challenge in one folder, each with the folder of its name once more."""
    without_processes(monkeypatch)
    (tmp_path / "a").mkdir()
    for part in ("train", "validation", "test"):
        members = {
            f"{part}/{name}": content
            for name, content in segpc_members().items()
            if name.startswith(f"{part}/")
        }
        write_zip(tmp_path / "a" / f"{part}.zip", members)
    for workers in (1, 2):
        output = tmp_path / f"out{workers}"
        summary = segpc.convert(tmp_path / "a", output, protocol="challenge", workers=workers)
        assert (summary.splits["training"].images, summary.splits["test"].images) == (8, 4)
        assert protocol_sizes(output) == {"random_80_10_10": (10, 1, 1), "challenge": (8, 0, 4)}
        assert validate_dataset(output).splits == summary.splits
    files = [
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*.*")}
        for out in (tmp_path / "out1", tmp_path / "out2")
    ]
    assert files[0] == files[1]


def test_hidden_and_empty_masks_and_cells_without_nucleus(tmp_path: Path) -> None:
    members = segpc_members(1, 0, 0)
    members |= {
        "train/y/1_11.bmp": bmp(np.zeros(SHAPE, np.uint8)),
        "train/y/1_12.bmp": bmp(cell_mask(10, nucleus=False)),
        "train/y/1_013.bmp": bmp(cell_mask(1)),
    }
    summary = segpc.convert(write_zip(tmp_path / "TRAIN.zip", members), tmp_path / "out", target="cell")
    assert summary.dropped == {"empty masks": 1, "hidden cells or parts": 1}
    assert instances_of(tmp_path / "out", "train_1").max() == 3


def test_part_is_told_by_the_name_of_the_source_and_letter_case_does_not_matter(tmp_path: Path) -> None:
    members = {
        name.removeprefix("train/").replace("x/", "X/").replace(".bmp", ".BMP"): content
        for name, content in segpc_members(2, 0, 0).items()
    }
    segpc.convert(write_zip(tmp_path / "SegPC_Train.zip", members), tmp_path / "out")
    assert set(protocol_sizes(tmp_path / "out")) == {"random_80_10_10"}
    with pytest.raises(DatasetError, match="in no folder train or validation"):
        segpc.convert(write_zip(tmp_path / "a.zip", members), tmp_path / "again")


def test_unknown_target_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", segpc_members())
    with pytest.raises(ConfigurationError, match="expected one of parts, cell, nucleus, cytoplasm"):
        segpc.convert(path, tmp_path / "out", target="nuclei")


def changed(**files: bytes) -> dict[str, bytes]:
    return segpc_members(2, 1) | {
        name.replace("__", "/") + ".bmp": content for name, content in files.items()
    }


WRONG = {
    "foreign": ({"readme.txt": b"x"}, "not a SegPC-2021 archive"),
    "only test": (segpc_members(0, 0, 2), "only test images"),
    "no mask": (changed(train__x__9=b"x"), r"train/x/9\.bmp: the masks of its cells are missing"),
    "no image": (changed(train__y__9_1=b"x"), r"train/y/9_1\.bmp: its image is missing"),
    "no cell": (changed(train__y__9=b"x"), r"train/y/9\.bmp: not the mask of a cell"),
    "cell name": (changed(train__y__1_a=b"x"), r"train/y/1_a\.bmp: not the mask of a cell"),
    "image twice": (segpc_members(1) | {"copy/train/x/1.bmp": b"x"}, "one image twice"),
    "cell twice": (changed(train__y__1_02=b"x"), "one cell twice"),
    "shape": (changed(train__y__1_2=bmp(np.zeros((4, 4), np.uint8))), r"1_2\.bmp: label map is \(4, 4\)"),
    "values": (
        changed(train__y__1_2=bmp(np.full(SHAPE, 255, np.uint8))),
        r"values \[255\], expected 0, 20",
    ),
    "lossy": (changed(train__y__1_2=jpeg(cell_mask(1))), "a JPEG, which changes ids"),
    "damaged": (changed(train__x__1=b"x"), "not a readable image"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sources_leave_nothing_behind(tmp_path: Path, case: str) -> None:
    members, message = WRONG[case]
    path = write_zip(tmp_path / "a.zip", members)
    with pytest.raises(DatasetError, match=message):
        segpc.convert(path, tmp_path / "data" / "out")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
