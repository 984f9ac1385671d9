from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.data.converters import nuinsseg
from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.label_files import read_image, read_instances
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from tests.data.original_nuinsseg import ORGANS, SIZE, nuinsseg_labels, nuinsseg_members
from tests.data.originals import noise, png, write_folder, write_zip


def test_images_of_all_organs(tmp_path: Path) -> None:
    for path in (
        write_zip(tmp_path / "a.zip", nuinsseg_members()),
        write_folder(tmp_path / "a", nuinsseg_members("")),
    ):
        output = tmp_path / f"out{path.suffix}"
        summary = nuinsseg.convert(path, output)
        assert validate_dataset(output).splits == summary.splits
        items = {item["id"]: item for item in read_dataset(output).items()}
        assert len(items) == 23
        assert {item["tissue"] for item in items.values()} == set(ORGANS)
        item = items["mouse_subscapula_03"]
        np.testing.assert_array_equal(read_image(item["image"]), noise(SIZE, SIZE, 3, 3))
        expected = np.searchsorted([0, 5, 300], nuinsseg_labels())
        np.testing.assert_array_equal(read_instances(item["instances"]), expected)
        assert read_instances(items["mouse_subscapula_01"]["instances"]).max() == 0


def test_every_organ_is_cut_in_the_order_of_its_names(tmp_path: Path) -> None:
    nuinsseg.convert(write_zip(tmp_path / "a.zip", nuinsseg_members()), tmp_path / "out")
    dataset = read_dataset(tmp_path / "out")
    assert dataset.metadata.protocol == "per_organ_70_15_15"
    for organ, (prefix, count) in ORGANS.items():
        ids = [f"{prefix}_{number:02d}" for number in range(1, count + 1)]
        # 15 % of 10, 4, 7 and 2, rounded half up, for validation and for testing
        held_out = {10: 2, 4: 1, 7: 1, 2: 0}[count]
        assert [
            [item["id"] for item in dataset.splits[split] if item["tissue"] == organ]
            for split in ("training", "validation", "test")
        ] == [
            ids[: count - 2 * held_out],
            ids[count - 2 * held_out : count - held_out],
            ids[count - held_out :],
        ]


def test_five_folds_are_those_of_the_authors(tmp_path: Path) -> None:
    """The fold of scikit-learn's KFold over the images in the order of their paths."""
    nuinsseg.convert(
        write_folder(tmp_path / "a", nuinsseg_members()), tmp_path / "out", protocol="five_fold_2"
    )
    dataset = read_dataset(tmp_path / "out")
    assert [item["id"] for item in dataset.splits["test"]] == [
        "human_bladder_01",
        "human_bladder_04",
        "human_bladder_10",
        "human_salivory_gland_04",
        "mouse_femur_02",
    ]
    folds = [dataset.metadata.protocols[f"five_fold_{number}"] for number in range(1, 6)]
    assert [len(fold.test) for fold in folds] == [5, 5, 5, 4, 4]
    assert len({sample_id for fold in folds for sample_id in fold.test}) == 23
    for fold in folds:
        assert len(fold.validation) == 2
        assert len({*fold.training, *fold.validation, *fold.test}) == len(fold.split_of_id()) == 23


def test_letter_case_and_underscores(tmp_path: Path) -> None:
    members = {
        name.replace("tissue images", "Tissue_Images").replace(
            "label masks modify", "LABEL_MASKS_MODIFY"
        ): data
        for name, data in nuinsseg_members("a/b/").items()
    }
    members = {k.replace(".tif", ".TIFF").replace("femur_0", "Femur_0", 1): v for k, v in members.items()}
    summary = nuinsseg.convert(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    assert sum(count.images for count in summary.splits.values()) == 23


def changed(name: str, content: bytes | None) -> dict[str, bytes]:
    members = {**nuinsseg_members(""), name: content}
    return {key: value for key, value in members.items() if value is not None}


FEMUR = "mouse femur/tissue images/mouse_femur_02.png"
LABELS = "mouse femur/label masks modify/mouse_femur_02.tif"
WRONG = {
    "foreign": ({"readme.txt": b"x"}, r"not a NuInsSeg archive, .* readme\.txt"),
    "one organ without its folder": (
        {"tissue images/human_bladder_01.png": b"x"},
        "expected '<human or mouse organ>/tissue images",
    ),
    "no labels": (changed(LABELS, None), "first mouse femur/mouse_femur_02: .* has no label map"),
    "no image": (changed(FEMUR, None), "first mouse femur/mouse_femur_02: .* has no image"),
    "twice": (changed(f"copy/{FEMUR}", b"x"), "two images of mouse femur/mouse_femur_02"),
    "same id": (
        {
            **changed(FEMUR.replace("mouse femur", "mouse liver"), png(noise(SIZE, SIZE))),
            LABELS.replace("mouse femur", "mouse liver"): png(nuinsseg_labels()),
        },
        "'mouse_femur_02' occurs twice",
    ),
    "damaged": (changed(LABELS, b"x"), r"mouse_femur_02\.tif: damaged"),
    "size": (changed(FEMUR, png(noise(9, 9))), r"its image is \(9, 9\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sources_leave_nothing_behind(tmp_path: Path, case: str) -> None:
    members, message = WRONG[case]
    source = write_folder(tmp_path / "a", members)
    with pytest.raises(DatasetError, match=message):
        nuinsseg.convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_unknown_protocol_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "a", nuinsseg_members())
    with pytest.raises(ConfigurationError, match="expected one of per_organ_70_15_15, five_fold_1"):
        nuinsseg.convert(path, tmp_path / "out", protocol="five_fold_6")
