from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.data.converters import kumar
from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from tests.data.converters.folders import image_of, instances_of, item_of, protocol_sizes
from tests.data.encoded import jpeg, labels, mat, npy
from tests.data.original_kumar import kumar_members
from tests.data.originals import noise, png, tiff, write_folder, write_zip

FIRST = "TCGA-A7-A13E-01Z-00-DX1"
IMAGE, LABELS = f"Kumar/images/train_ori16/{FIRST}.png", f"Kumar/labels/train_ori16_ins/{FIRST}.npy"


def test_parts_tissues_and_instances(tmp_path: Path) -> None:
    members = kumar_members()
    for path in (write_folder(tmp_path / "a", members), write_zip(tmp_path / "a.zip", members)):
        output = tmp_path / f"out{path.suffix}"
        summary = kumar.convert(path, output)
        assert validate_dataset(output).splits == summary.splits
        assert summary.protocol == "kumar_16_8_6"
        assert protocol_sizes(output) == {
            "kumar_16_8_6": (16, 0, 14),
            "kumar_15": (14, 2, 14),
            "kumar_test1": (16, 0, 8),
            "kumar_test2": (16, 0, 6),
        }
        np.testing.assert_array_equal(instances_of(output, FIRST), labels((6, 9), 2, 1))
        np.testing.assert_array_equal(image_of(output, FIRST), noise(6, 9, 3, 0))
        item = item_of(output, FIRST)
        assert (item["tissue"], item["group"]) == ("breast", "TCGA-A7-A13E")


def test_reported_parts_are_of_seen_and_unseen_organs(tmp_path: Path) -> None:
    kumar.convert(write_folder(tmp_path / "a", kumar_members()), tmp_path / "out", protocol="kumar_test1")
    dataset = read_dataset(tmp_path / "out")
    seen = {item["tissue"] for item in dataset.splits["training"]}
    assert {item["tissue"] for item in dataset.splits["test"]} == seen
    unseen = dataset.with_protocol("kumar_test2").splits["test"]
    assert {item["tissue"] for item in unseen} == {"bladder", "colon", "stomach"}


def test_other_formats_of_instance_maps(tmp_path: Path) -> None:
    """The same maps as MATLAB, PNG, TIFF and in Fortran order, with other folders and letter case."""
    expected = labels((6, 9), 7, 3)
    ids = [f"TCGA-{patient}-01Z-00-DX1" for patient in ("18-5592", "38-6178", "49-4488", "50-5931")]
    members = {f"Images/{sample_id.lower()}.JPG": jpeg(noise(6, 9)) for sample_id in ids}
    members |= {
        f"Labels/{ids[0]}.MAT": mat(inst_map=expected.astype(float)),
        f"Test_Ins/{ids[1]}.png": png(expected.astype(np.uint16)),
        f"instances/{ids[2]}_ins.tif": tiff(expected),
        f"any/{ids[3]}.npy": npy(np.asfortranarray(expected)),
        "__MACOSX/Images/._a.jpg": b"x",
    }
    kumar.convert(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    for sample_id in ids:
        np.testing.assert_array_equal(instances_of(tmp_path / "out", sample_id), labels((6, 9), 2, 1))


def test_parts_that_are_not_there_have_no_protocol(tmp_path: Path) -> None:
    members = {name: content for name, content in kumar_members().items() if "test2" not in name}
    members |= {
        "Kumar/images/new/TCGA-XX-0000-01Z.png": png(noise(6, 9)),
        "Kumar/labels/new_ins/TCGA-XX-0000-01Z.npy": npy(np.zeros((6, 9), np.int32)),
    }
    path = write_zip(tmp_path / "a.zip", members)
    summary = kumar.convert(path, tmp_path / "out")
    assert set(protocol_sizes(tmp_path / "out")) == {"kumar_16_8_6", "kumar_15", "kumar_test1"}
    assert (summary.splits["unused"].images, summary.splits["unused"].nuclei) == (1, 0)
    with pytest.raises(ConfigurationError, match="have images for kumar_16_8_6, kumar_15, kumar_test1 only"):
        kumar.convert(path, tmp_path / "again", protocol="kumar_test2")


def test_unknown_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected one of kumar_16_8_6"):
        kumar.convert(write_zip(tmp_path / "a.zip", kumar_members()), tmp_path / "out", protocol="x")


def without(name: str) -> dict[str, bytes]:
    return {key: content for key, content in kumar_members().items() if key != name}


WRONG = {
    "foreign": ({"readme.txt": b"x"}, r"not a Kumar archive, .* readme\.txt"),
    "no labels": (without(LABELS), rf"first {FIRST}: {IMAGE} has no label map"),
    "no image": (without(IMAGE), rf"first {FIRST}: {LABELS} has no image"),
    "two labels": (kumar_members() | {f"old/{FIRST}.npy": b"x"}, f"two label maps of {FIRST}"),
    "shape": (kumar_members() | {LABELS: npy(labels((6, 8), 1))}, r"npy: label map is \(6, 8\), its image"),
    "objects": (
        kumar_members() | {LABELS: npy(np.array([[{}]], dtype=object))},
        r"npy: holds pickled Python objects",
    ),
    "not whole": (kumar_members() | {LABELS: npy(labels((6, 9), 1) + 0.5)}, "expected whole ids"),
    "damaged": (kumar_members() | {IMAGE: b"x"}, "not a readable image"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sources_leave_nothing_behind(tmp_path: Path, case: str) -> None:
    members, message = WRONG[case]
    path = write_zip(tmp_path / "a.zip", members)
    with pytest.raises(DatasetError, match=message):
        kumar.convert(path, tmp_path / "data" / "out")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
