import csv
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from nucsam_monai.data import DatasetMetadata, DatasetWriter
from nucsam_monai.io import write_label_image
from nucsam_monai.metrics import instance_metrics
from scripts.evaluate_predictions import run
from tests.metrics.label_maps import pair_of_discs

IDS = ("a", "b.2", "c")
PAIRS = {name: pair_of_discs(seed, side=64, count=8) for seed, name in enumerate(IDS)}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    metadata = DatasetMetadata(
        name="toy", domain="toy", modality="H&E", magnification=20, mpp=None, licence="", citation="",
        class_names=("round", "oval"),
    )  # fmt: skip
    image = np.zeros((64, 64, 3), np.uint8)
    with DatasetWriter(tmp_path / "toy", metadata) as writer:
        for index, (name, (true, _)) in enumerate(PAIRS.items()):
            classes = {int(i): int(i) % 2 for i in np.unique(true) if i}
            writer.add("test", name, image, true, classes=classes, tissue=f"t{index % 2}")
        writer.add("training", "other", image, true, classes=classes)
    return tmp_path / "toy"


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """One format per image, as different tools write them."""
    folder = tmp_path / "predicted"
    (folder / "classes").mkdir(parents=True)
    for name, (_, found) in PAIRS.items():
        classes = {int(i): int(i) % 2 for i in np.unique(found) if i}
        (folder / "classes" / f"{name}.json").write_text(json.dumps(classes))
    np.save(folder / "a.npy", PAIRS["a"][1])
    Image.fromarray(PAIRS["b.2"][1].astype(np.uint16)).save(folder / "b.2.png")
    write_label_image(folder / "c_instances.tif", PAIRS["c"][1])
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "c_overlay.png")
    (folder / "notes.txt").write_text("")
    return folder


def evaluate(dataset: Path, predictions: Path, *options: str) -> int:
    return run(["--dataset", str(dataset), "--predictions", str(predictions), *options])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_as_cellpose_names_them(dataset: Path, predictions: Path) -> None:
    (predictions / "b.2.png").rename(predictions / "b.2_cp_masks.png")
    assert evaluate(dataset, predictions, "--output_dir", str(predictions / "out")) == 0


def test_all_splits_at_once(dataset: Path, predictions: Path, tmp_path: Path, capsys) -> None:
    np.save(predictions / "other.npy", PAIRS["c"][1])
    for split in ("all", "training+test"):
        assert evaluate(dataset, predictions, "--split", split, "--output_dir", str(tmp_path / split)) == 0
        assert {row["id"] for row in read_csv(tmp_path / split / "per_image.csv")} == {*IDS, "other"}
    assert evaluate(dataset, predictions, "--split", "test+tests") == 1
    assert "split 'tests'" in capsys.readouterr().err


def test_tables_and_summary(dataset: Path, predictions: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert evaluate(dataset, predictions, "--output_dir", str(out)) == 0
    printed = capsys.readouterr().out
    rows = read_csv(out / "per_image.csv")
    assert [(row["id"], row["tissue"]) for row in rows] == [("a", "t0"), ("b.2", "t1"), ("c", "t0")]
    aji = [instance_metrics(*PAIRS[name]).aji for name in IDS]
    assert [float(row["aji"]) for row in rows] == pytest.approx(aji)
    (summary,) = read_csv(out / "summary.csv")
    assert float(summary["aji"]) == pytest.approx(np.mean(aji))
    assert float(summary["aji_ci_low"]) < np.mean(aji) < float(summary["aji_ci_high"])
    document = json.loads((out / "summary.json").read_text())
    assert document["split"] == "test"
    assert document["radius_px"] == 6
    assert "per_image" not in document
    assert len(read_csv(out / "per_tissue.csv")) == 3
    assert not (out / "per_class.csv").exists()
    assert f"aji {np.mean(aji):27.4f}   {float(summary['aji_ci_low']):.4f} to " in printed
    assert "95 % interval over 3 images" in printed


def test_classes_from_json_or_from_class_maps(
    dataset: Path, predictions: Path, tmp_path: Path, capsys
) -> None:
    maps, mats = tmp_path / "maps", tmp_path / "mats"
    maps.mkdir()
    mats.mkdir()
    for name, (_, found) in PAIRS.items():
        np.save(maps / f"{name}.npy", np.where(found > 0, found % 2 + 1, 0))
        types = np.unique(found)[1:, np.newaxis] % 2 + 1
        scipy.io.savemat(mats / f"{name}.mat", {"inst_map": found, "inst_type": types})
    tables = []
    for number, folder in enumerate((predictions / "classes", maps, mats)):
        out = tmp_path / str(number)
        assert evaluate(dataset, predictions, "--classes", str(folder), "--output_dir", str(out)) == 0
        tables.append(read_csv(out / "per_class.csv"))
    assert tables[0] == tables[1] == tables[2]
    assert [row["class"] for row in tables[0]] == ["round", "oval"]
    assert 0 < float(tables[0][0]["pq_plus"]) < 1
    assert "class oval: in 3 images" in capsys.readouterr().out


def test_comparison_with_an_earlier_evaluation(
    dataset: Path, predictions: Path, tmp_path: Path, capsys
) -> None:
    assert evaluate(dataset, predictions, "--output_dir", str(tmp_path / "first")) == 0
    perfect = tmp_path / "perfect"
    perfect.mkdir()
    for name, (true, _) in PAIRS.items():
        np.save(perfect / f"{name}.npy", true)
    out = tmp_path / "second"
    other = str(tmp_path / "first" / "summary.json")
    assert evaluate(dataset, perfect, "--output_dir", str(out), "--compare_with", other) == 0
    rows = {row["metric"]: row for row in read_csv(out / "comparison.csv")}
    aji = [instance_metrics(*PAIRS[name]).aji for name in IDS]
    assert float(rows["aji"]["mean_difference"]) == pytest.approx(1 - np.mean(aji))
    assert rows["aji"]["pairs"] == "3"
    assert "Wilcoxon p 0.25" in capsys.readouterr().out
    assert evaluate(dataset, perfect, "--output_dir", str(out)) == 0
    assert not (out / "comparison.csv").exists()


def spoil_missing(folder: Path) -> None:
    (folder / "a.npy").unlink()


def spoil_unknown(folder: Path) -> None:
    np.save(folder / "stranger.npy", PAIRS["a"][1])


def spoil_several(folder: Path) -> None:
    write_label_image(folder / "a.tif", PAIRS["a"][1])


def spoil_size(folder: Path) -> None:
    np.save(folder / "a.npy", PAIRS["a"][1][:32])


def spoil_values(folder: Path) -> None:
    np.save(folder / "a.npy", PAIRS["a"][1] / 2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, "no prediction for 1 of 3 images of split 'test': a."),
        (spoil_unknown, "1 files belong to no image of the dataset: stranger.npy"),
        (spoil_several, "several predictions for one image: a.npy, a.tif"),
        (spoil_size, "a.npy: 64 x 32 px, the image has 64 x 64 px"),
        (spoil_values, "expected whole ids"),
    ],
)
def test_predictions_that_do_not_fit(
    dataset: Path, predictions: Path, tmp_path: Path, capsys, spoil, message
) -> None:
    spoil(predictions)
    assert evaluate(dataset, predictions, "--output_dir", str(tmp_path / "out")) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_predictions_of_other_splits_are_ignored(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    np.save(predictions / "other.npy", PAIRS["c"][1])
    assert evaluate(dataset, predictions, "--output_dir", str(tmp_path / "out")) == 0
    assert len(read_csv(tmp_path / "out" / "per_image.csv")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "nowhere"], "nowhere: no such folder"),
        (["--split", "validation"], "hold no image"),
        (["--compare_with", "nowhere"], "per_image.csv cannot be read"),
        (["--spilt", "training"], "unknown option --spilt"),
        (["--radius_px", "-3"], "radius_px: detection needs a positive radius"),
    ],
)
def test_options_that_do_not_fit(
    dataset: Path, predictions: Path, tmp_path: Path, capsys, options, message
) -> None:
    assert evaluate(dataset, predictions, "--output_dir", str(tmp_path / "out"), *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_binary_masks_are_noticed(dataset: Path, tmp_path: Path, caplog) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for name, (_, found) in PAIRS.items():
        Image.fromarray(np.where(found > 0, 255, 0).astype(np.uint8)).save(masks / f"{name}.png")
    assert evaluate(dataset, masks, "--output_dir", str(tmp_path / "out")) == 0
    assert "binary masks" in caplog.text


def test_missing_classes_are_named(dataset: Path, predictions: Path, capsys) -> None:
    (predictions / "classes" / "c.json").unlink()
    assert evaluate(dataset, predictions, "--classes", str(predictions / "classes")) == 1
    assert "found none or several for 1 of 3: c." in capsys.readouterr().err
