from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.data.converters import cryonuseg
from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.label_files import read_image, read_instances
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from tests.data.original_cryonuseg import IDS, MARK_UPS, SIZE, cryonuseg_members, label_map
from tests.data.originals import noise, png, tiff, write_folder, write_zip

FEW = IDS[:4]


def test_all_images_are_test_images_by_default(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "archive.zip", cryonuseg_members())
    summary = cryonuseg.convert(path, tmp_path / "out")
    dataset = read_dataset(tmp_path / "out")
    assert {split: len(items) for split, items in dataset.splits.items()} == {
        "training": 0,
        "validation": 0,
        "test": 30,
    }
    assert validate_dataset(tmp_path / "out").splits == summary.splits
    item = dataset.splits["test"][1]
    assert (item["id"], item["tissue"]) == ("Human_AdrenalGland_02", "adrenal gland")
    np.testing.assert_array_equal(read_image(item["image"]), noise(SIZE, SIZE, 3, 1))
    np.testing.assert_array_equal(read_instances(item["instances"]), label_map(1) > 0)
    assert len({item["tissue"] for item in dataset.items()}) == 10


def test_ten_experiments_test_every_image_once(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "archive", cryonuseg_members())
    cryonuseg.convert(path, tmp_path / "out", protocol="experiment1")
    dataset = read_dataset(tmp_path / "out")
    assert [item["id"] for item in dataset.splits["test"]] == [
        "Human_Larynx_01",
        "Human_Pancreas_02",
        "Human_Testes_03",
    ]
    tests: list[str] = []
    for number in range(1, 11):
        protocol = dataset.metadata.protocols[f"experiment{number}"]
        assert [len(ids) for ids in protocol.splits.values()] == [24, 3, 3]
        assert sorted(sum(protocol.splits.values(), ())) == list(IDS)
        tests += protocol.test
    assert sorted(tests) == list(IDS)


@pytest.mark.parametrize(("annotation", "nuclei"), [(name, n) for n, name in enumerate(MARK_UPS, start=1)])
def test_mark_ups(tmp_path: Path, annotation: str, nuclei: int) -> None:
    path = write_folder(tmp_path / "archive", cryonuseg_members(FEW))
    summary = cryonuseg.convert(path, tmp_path / "out", annotation=annotation)
    assert summary.splits["test"].nuclei == nuclei * len(FEW)
    metadata = read_dataset(tmp_path / "out").metadata
    assert metadata.conversion["annotation"] == annotation
    assert list(metadata.protocols) == ["zero_shot"]


def test_spelling_root_and_first_release(tmp_path: Path) -> None:
    members = {f"x/CryoNuSeg/{k}".replace(" images", "_Images"): v for k, v in cryonuseg_members(FEW).items()}
    members = {k.replace("label masks modify", "Label_Masks_Modify"): v for k, v in members.items()}
    assert (
        cryonuseg.convert(write_zip(tmp_path / "a.zip", members), tmp_path / "one").splits["test"].nuclei == 4
    )
    first_release = {
        k.replace(MARK_UPS["biologist"], "").replace("Human_", "HUMAN_"): v
        for k, v in cryonuseg_members(FEW).items()
        if "second round" not in k and "Annotator 2" not in k
    }
    for path in (write_zip(tmp_path / "b.zip", first_release), write_folder(tmp_path / "b", first_release)):
        assert cryonuseg.convert(path, tmp_path / f"b{path.suffix}_out").splits["test"].nuclei == 4
    both = {**cryonuseg_members(FEW), "label masks modify/Human_Skin_01.tif": tiff(label_map(3))}
    assert cryonuseg.convert(write_zip(tmp_path / "c.zip", both), tmp_path / "two").splits["test"].nuclei == 4


def changed(name: str, content: bytes | None) -> dict[str, bytes]:
    members = {**cryonuseg_members(FEW), name: content}
    return {key: value for key, value in members.items() if value is not None}


LABELS = f"{MARK_UPS['biologist']}label masks modify"
WRONG = {
    "foreign": ({"readme.txt": b"x"}, r"not a CryoNuSeg archive, .* readme\.txt"),
    "no mark-up": (
        {k: v for k, v in cryonuseg_members(FEW).items() if not k.startswith(LABELS)},
        "no mark-up 'biologist', it has .*bioinformatician",
    ),
    "no labels": (
        changed(f"{LABELS}/{FEW[2]}.tif", None),
        "first Human_AdrenalGland_03: .* has no label map",
    ),
    "no image": (changed(f"tissue images/{FEW[1]}.tif", None), "has no image"),
    "twice": (changed(f"copy/tissue images/{FEW[1]}.tif", b"x"), f"two images of {FEW[1]}"),
    "damaged": (changed(f"{LABELS}/{FEW[1]}.tif", b"x"), f"{FEW[1]}.tif: damaged"),
    "colours": (changed(f"{LABELS}/{FEW[1]}.tif", png(noise(SIZE, SIZE))), "one id per pixel"),
    "size": (changed(f"{LABELS}/{FEW[1]}.tif", tiff(label_map(1)[:9])), rf"label map is \(9, {SIZE}\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sources_leave_nothing_behind(tmp_path: Path, case: str) -> None:
    members, message = WRONG[case]
    source = write_folder(tmp_path / "a", members)
    with pytest.raises(DatasetError, match=message):
        cryonuseg.convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "a", cryonuseg_members(FEW))
    for options in ({"annotation": "student"}, {"protocol": "experiment11"}):
        with pytest.raises(ConfigurationError, match="expected one of"):
            cryonuseg.convert(path, tmp_path / "out", **options)
    with pytest.raises(ConfigurationError, match="images for zero_shot only"):
        cryonuseg.convert(path, tmp_path / "out", protocol="experiment1")
