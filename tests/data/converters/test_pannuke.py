import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.data.converters import pannuke
from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.label_files import read_classes, read_image, read_instances
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from tests.data.original_pannuke import SIZE, npy, pannuke_fold, pannuke_masks, with_array
from tests.data.originals import noise, write_folder, write_zip
from tests.pickling_pool import without_processes

COUNTS = {1: 3, 2: 2, 3: 4}
ALL = {name: content for fold, count in COUNTS.items() for name, content in pannuke_fold(fold, count).items()}


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def archives() -> dict[str, bytes]:
    return {f"fold_{fold}.zip": zipped(pannuke_fold(fold, count)) for fold, count in COUNTS.items()}


def test_instances_and_classes_of_overlapping_channels(tmp_path: Path) -> None:
    summary = pannuke.convert(write_folder(tmp_path / "a", ALL), tmp_path / "out")
    item = read_dataset(tmp_path / "out").splits["training"][0]
    expected = np.zeros((SIZE, SIZE), np.int32)
    expected[6:8, 1:3], expected[1:5, 1:5] = 1, 2  # ids 3 and 7 of the first channel
    expected[9:12, 9:12] = 3
    expected[1:5, 3:7] = 4  # the later channel wins
    np.testing.assert_array_equal(read_instances(item["instances"]), expected)
    assert read_classes(item["classes"]) == {1: 0, 2: 0, 3: 2, 4: 4}
    np.testing.assert_array_equal(read_image(item["image"]), noise(SIZE, SIZE, 3, 10))
    assert (item["id"], item["tissue"], item["fold"]) == ("fold1_0000", "Breast", "fold1")
    assert summary.dropped == {"hidden nuclei": 3}


def test_against_painting_pixel_by_pixel(tmp_path: Path) -> None:
    """Every pixel carries the nucleus of its last channel, and every nucleus the class of its channel."""
    masks = np.random.default_rng(3).integers(0, 4, (3, SIZE, SIZE, 6)).astype(np.float64)
    members = with_array(pannuke_fold(1), "masks.npy", masks)
    pannuke.convert(write_folder(tmp_path / "fold1", members), tmp_path / "out")
    for row, item in enumerate(read_dataset(tmp_path / "out").splits["training"]):
        instances, classes = read_instances(item["instances"]), read_classes(item["classes"])
        meaning = {}
        for y, x in np.ndindex(SIZE, SIZE):
            owner = [
                (channel, masks[row, y, x, channel]) for channel in range(5) if masks[row, y, x, channel]
            ]
            if not owner:
                assert instances[y, x] == 0
                continue
            assert meaning.setdefault(instances[y, x], owner[-1]) == owner[-1]
            assert classes[instances[y, x]] == owner[-1][0]
        assert len(set(meaning.values())) == len(meaning) == instances.max()


@pytest.mark.parametrize("layout", ["folder of archives", "archive of archives", "unpacked", "one archive"])
def test_layouts_as_distributed(tmp_path: Path, layout: str) -> None:
    source = {
        "folder of archives": lambda: write_folder(tmp_path / "PanNuke", archives()),
        "archive of archives": lambda: write_zip(tmp_path / "all.zip", archives()),
        "unpacked": lambda: write_folder(tmp_path / "PanNuke", ALL),
        "one archive": lambda: write_zip(tmp_path / "all.zip", {f"x/y/{k}": v for k, v in ALL.items()}),
    }[layout]()
    summary = pannuke.convert(source, tmp_path / "out", protocol="fold2", workers=1)
    assert validate_dataset(tmp_path / "out").splits == summary.splits
    dataset = read_dataset(tmp_path / "out")
    for name, folds in (("fold1", (1, 2, 3)), ("fold2", (2, 1, 3)), ("fold3", (3, 2, 1))):
        splits = dataset.with_protocol(name).splits
        for split, fold in zip(("training", "validation", "test"), folds, strict=True):
            expected = [f"fold{fold}_{row:04d}" for row in range(COUNTS[fold])]
            assert [item["id"] for item in splits[split]] == expected
    assert dataset.metadata.protocol == "fold2"
    assert set(dataset.metadata.protocols) == {"fold1", "fold2", "fold3"}


def test_two_workers_write_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(monkeypatch)
    source = write_folder(tmp_path / "PanNuke", archives())
    one = pannuke.convert(source, tmp_path / "one")
    two = pannuke.convert(source, tmp_path / "two", workers=2)
    assert (one.splits, one.dropped) == (two.splits, two.dropped)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 3 * sum(COUNTS.values()) + 1
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("root", ["", "Fold1/", "FOLD_1/x/", "fold-1/"])
def test_spelling_of_a_single_fold_and_its_own_protocol(
    tmp_path: Path, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    members = {k.replace("masks.npy", "Masks.NPY"): v for k, v in pannuke_fold(1, root=root).items()}
    summary = pannuke.convert(write_zip(tmp_path / "download.zip", members), tmp_path / "out")
    assert summary.protocol == "incomplete"
    assert {split: count.images for split, count in summary.splits.items()} == {
        "training": 3,
        "validation": 0,
        "test": 0,
    }
    assert "Only fold 1 found" in caplog.text
    assert "found 3 images, expected 2656" in caplog.text
    with pytest.raises(ConfigurationError, match="images for incomplete only"):
        pannuke.convert(tmp_path / "download.zip", tmp_path / "again", protocol="fold1")


def test_fold_is_known_from_the_name_of_the_source(tmp_path: Path) -> None:
    members = {name.rpartition("/")[2]: content for name, content in pannuke_fold(3).items()}
    summary = pannuke.convert(write_zip(tmp_path / "fold_3.zip", members), tmp_path / "out")
    assert summary.splits["test"].images == 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32, ">f8"])
def test_arrays_of_other_types(tmp_path: Path, dtype: object) -> None:
    members = with_array(pannuke_fold(1), "masks.npy", pannuke_masks(3).astype(dtype))
    members = with_array(members, "types.npy", np.array([b"Skin"] * 3))
    summary = pannuke.convert(write_folder(tmp_path / "a", members), tmp_path / "out")
    assert summary.splits["training"].nuclei == 5
    assert {item["tissue"] for item in read_dataset(tmp_path / "out").items()} == {"Skin"}


FOLD = pannuke_fold(1)
FRACTIONS = pannuke_masks(3)
FRACTIONS[1, 2, 3, 4] = 0.5
DARK = np.full((3, SIZE, SIZE, 3), 0.25)
WRONG = {
    "foreign": ({"readme.txt": b"x"}, r"not PanNuke, .* readme\.txt"),
    "no fold": ({"a/images.npy": b"x"}, r"a/images\.npy: no name on its path says which fold"),
    "no masks": (
        {k: v for k, v in FOLD.items() if not k.endswith("masks.npy")},
        r"fold 1 has no masks\.npy",
    ),
    "twice": ({**FOLD, **pannuke_fold(1, root="copy/")}, "images of fold 1 twice, .* either the archives"),
    "pickled types": (
        with_array(FOLD, "types.npy", np.array(["Skin", "Lung", None], object)),
        r"types\.npy: holds Python objects, which are never unpickled",
    ),
    "types as numbers": (with_array(FOLD, "types.npy", np.zeros(3)), "holds float64 .* tissues' names"),
    "too few types": (with_array(FOLD, "types.npy", np.array(["Skin"])), r"and 1 tissues; expected"),
    "channels": (with_array(FOLD, "masks.npy", pannuke_masks(3)[..., :5]), r"masks \(3, 12, 12, 5\)"),
    "fewer masks": (with_array(FOLD, "masks.npy", pannuke_masks(3)[:2]), r"masks \(2, 12, 12, 6\)"),
    "cut masks": (with_array(FOLD, "masks.npy", npy(pannuke_masks(3))[:-8]), "ends in row 2 of 3"),
    "scaled images": (with_array(FOLD, "images.npy", DARK), r"image 0: pixels are scaled to 0 to 1"),
    "bright images": (with_array(FOLD, "images.npy", DARK + 256), r"pixels from 256\.25 to 256\.25"),
    "NaN images": (with_array(FOLD, "images.npy", DARK * np.nan), "pixels from nan to nan"),
    "fractional ids": (with_array(FOLD, "masks.npy", FRACTIONS), "image 1: expected ids that are whole"),
    "negative ids": (with_array(FOLD, "masks.npy", -pannuke_masks(3)), "image 0: expected ids that are"),
    "huge ids": (with_array(FOLD, "masks.npy", pannuke_masks(3) * 2**31), "image 0: expected ids that are"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sources_leave_nothing_behind(tmp_path: Path, case: str) -> None:
    members, message = WRONG[case]
    for path in (write_zip(tmp_path / "a.zip", members), write_folder(tmp_path / "a", members)):
        with pytest.raises(DatasetError, match=message):
            pannuke.convert(path, tmp_path / "data" / "out")
    assert [file for file in (tmp_path / "data").rglob("*") if file.is_file()] == []
