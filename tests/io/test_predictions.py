import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from nucsam_monai.io import read_image, write_prediction
from nucsam_monai.utils.errors import ConfigurationError, OutputError
from nucsam_monai.utils.prediction import NUCLEUS_DTYPE, NucleiPrediction, prediction_from_instances

IMAGE = np.full((20, 31, 3), 120, dtype=np.uint8)


def two_nuclei() -> NucleiPrediction:
    instances = np.zeros((20, 31), dtype=np.int32)
    instances[2:8, 3:9] = 1
    instances[9:15, 12:30] = 70_000
    return prediction_from_instances(instances, class_ids=np.array([0, 1]), class_names=("tumour", "stroma"))


def test_files_of_one_image_agree(tmp_path: Path) -> None:
    prediction = two_nuclei()
    paths = write_prediction(prediction, IMAGE, tmp_path / "new" / "folder", "slide.1")
    assert {kind: path.name for kind, path in paths.items()} == {
        "instances": "slide.1_instances.tif",
        "geojson": "slide.1.geojson",
        "table": "slide.1_nuclei.csv",
        "overlay": "slide.1_overlay.png",
    }
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(
        path.name for path in paths.values()
    )
    np.testing.assert_array_equal(tifffile.imread(paths["instances"]), prediction.instances)
    with paths["table"].open() as file:
        rows = list(csv.DictReader(file))
    features = json.loads(paths["geojson"].read_text())["features"]
    assert [int(row["id"]) for row in rows] == [1, 70_000]
    assert [feature["properties"]["measurements"]["id"] for feature in features] == [1, 70_000]
    overlay = read_image(paths["overlay"])
    tumour, stroma = (feature["properties"]["classification"]["color"] for feature in features)
    assert overlay[2, 3].tolist() == tumour
    assert overlay[9, 12].tolist() == stroma
    assert overlay[4, 5].tolist() == [120, 120, 120]


def test_no_nuclei_is_normal(tmp_path: Path) -> None:
    paths = write_prediction(prediction_from_instances(np.zeros((20, 31), int)), IMAGE, tmp_path, "empty")
    label_image = tifffile.imread(paths["instances"])
    assert (label_image.dtype, label_image.shape, label_image.max()) == (np.uint16, (20, 31), 0)
    assert json.loads(paths["geojson"].read_text())["features"] == []
    assert paths["table"].read_text() == ",".join((*NUCLEUS_DTYPE.names, "class_name")) + "\n"
    np.testing.assert_array_equal(read_image(paths["overlay"]), IMAGE)


@pytest.mark.parametrize("stem", ["", ".", "..", "../a", "a/b", "a\\b", "/a", "a\0"])
def test_stem_cannot_leave_the_folder(tmp_path: Path, stem: str) -> None:
    with pytest.raises(ConfigurationError, match="stem"):
        write_prediction(two_nuclei(), IMAGE, tmp_path / "out", stem)
    assert list(tmp_path.iterdir()) == []


def without_last_row() -> NucleiPrediction:
    good = two_nuclei()
    return NucleiPrediction(good.instances, good.table[:-1], class_names=good.class_names)


def with_table(**columns) -> NucleiPrediction:
    good = two_nuclei()
    table = good.table.copy()
    for name, value in columns.items():
        table[name] = value
    return NucleiPrediction(good.instances, table, class_names=good.class_names)


def negative_ids() -> NucleiPrediction:
    good = two_nuclei()
    table = good.table[::-1].copy()
    table["id"] *= -1
    return NucleiPrediction(-good.instances, table, class_names=good.class_names)


@pytest.mark.parametrize(
    "bad",
    [
        without_last_row(),
        with_table(class_id=2),
        with_table(class_id=-1),
        with_table(score=np.nan),
        with_table(id=5),
        negative_ids(),
        prediction_from_instances(np.zeros((20, 30), int)),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, bad: NucleiPrediction
) -> None:
    with pytest.raises(ConfigurationError):
        write_prediction(bad, IMAGE, tmp_path / "out", "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing_file", range(4))
def test_a_full_disk_leaves_all_files_of_an_image_as_they_were(
    tmp_path: Path, monkeypatch, failing_file: int
) -> None:
    output = tmp_path / "out"
    empty = prediction_from_instances(np.zeros((20, 31), int))
    old = {path: path.read_bytes() for path in write_prediction(empty, IMAGE, output, "a").values()}
    calls = iter(range(4))

    def disk_becomes_full(_: int) -> None:
        if next(calls) == failing_file:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("nucsam_monai.utils.files.os.fsync", disk_becomes_full)
    with pytest.raises(OutputError, match=f"^{output}: can't be written .No space"):
        write_prediction(two_nuclei(), IMAGE, output, "a")
    assert {path: path.read_bytes() for path in output.iterdir()} == old


def test_overlay_is_reduced_or_left_out(tmp_path: Path) -> None:
    small = read_image(write_prediction(two_nuclei(), IMAGE, tmp_path, "a", overlay_px=16)["overlay"])
    assert small.shape == (10, 16, 3)
    assert len(np.unique(small.reshape(-1, 3), axis=0)) > 1
    assert "overlay" not in write_prediction(two_nuclei(), IMAGE, tmp_path, "b", overlay_px=0)
    assert not (tmp_path / "b_overlay.png").exists()
    assert read_image(write_prediction(two_nuclei(), IMAGE, tmp_path, "c", overlay_px=1)["overlay"]).shape[
        :2
    ] == (1, 1)
    with pytest.raises(ConfigurationError, match="overlay_px -3"):
        write_prediction(two_nuclei(), IMAGE, tmp_path / "d", "d", overlay_px=-3)
    assert not (tmp_path / "d").exists()
