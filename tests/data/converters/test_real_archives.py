"""The converters on the real archives, where ``NUCSAM_TEST_DATA`` names a folder that has them."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.data.converters import dsb2018, monuseg, nucls
from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.label_files import read_image, read_instances
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.data.writer import SplitCounts

DATA = Path(os.environ.get("NUCSAM_TEST_DATA", "missing"))
TRAIN = DATA / "dsb2018" / "stage1_train.zip"
MONUSEG = DATA / "monuseg" / "MoNuSeg 2018 Training Data.zip"


def needs(path: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not path.exists(), reason=f"NUCSAM_TEST_DATA has no {path.name}")


def part_of(archive: Path, ids: list[str], target: Path) -> Path:
    with zipfile.ZipFile(archive) as full, zipfile.ZipFile(target, "w") as part:
        for name in full.namelist():
            if any(sample_id in name for sample_id in ids):
                part.writestr(name, full.read(name))
    return target


@needs(TRAIN)
def test_dsb2018_part(tmp_path: Path) -> None:
    with zipfile.ZipFile(TRAIN) as archive:
        names = archive.namelist()
    ids = sorted({name.split("/")[0] for name in names})[:10]
    summary = dsb2018.convert(part_of(TRAIN, ids, tmp_path / "part.zip"), tmp_path / "out")
    assert {name: count.images for name, count in summary.splits.items()} == {
        "training": 8,
        "validation": 1,
        "test": 1,
    }
    masks = sum(name.split("/")[0] in ids and "/masks/" in name for name in names)
    dropped = sum(summary.dropped.values())
    assert sum(count.nuclei for count in summary.splits.values()) == masks - dropped
    assert validate_dataset(tmp_path / "out").splits == summary.splits


@needs(MONUSEG)
def test_monuseg_part_lies_on_the_nuclei(tmp_path: Path) -> None:
    ids = ["TCGA-A7-A13E", "TCGA-G9-6362"]
    monuseg.convert(part_of(MONUSEG, ids, tmp_path / "part.zip"), tmp_path / "out")
    counts = validate_dataset(tmp_path / "out").splits
    assert counts["training"].images == 2
    for item in read_dataset(tmp_path / "out").splits["training"]:
        red = read_image(item["image"])[..., 0].astype(float)
        foreground = read_instances(item["instances"]) > 0
        contrast = {
            shift: red[~np.roll(foreground, shift, (0, 1))].mean()
            - red[np.roll(foreground, shift, (0, 1))].mean()
            for shift in (-2, 0, 2)
        }
        assert contrast[0] == max(contrast.values())
        assert contrast[0] > 20


@needs(DATA / "nucls")
def test_nucls_whole(tmp_path: Path) -> None:
    summary = nucls.convert(DATA / "nucls", tmp_path / "out")
    assert summary.splits == {
        "training": SplitCounts(10, 458),
        "validation": SplitCounts(0, 0),
        "test": SplitCounts(5, 182),
    }
    assert validate_dataset(tmp_path / "out").splits == summary.splits
