"""Reports and files of evaluation and inference."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from monai.engines import SupervisedEvaluator
from PIL import Image
from torch import nn

from nucsam_monai.engines import PreparePrompterBatch, collate_points
from nucsam_monai.handlers import (
    DecollatePoints,
    DecollatePrediction,
    EvaluationReport,
    NamedMetricsHandler,
    NucleiEvaluation,
    PredictionWriter,
)
from nucsam_monai.handlers.evaluation import LabelMapWriter
from nucsam_monai.io import read_image, read_label_map
from nucsam_monai.metrics import EvaluationSample, evaluate, foreground_metrics, instance_metrics
from nucsam_monai.metrics.cumulative import ForegroundMetric, InstanceSegmentationMetric
from nucsam_monai.metrics.summary import summarise_by_domain
from nucsam_monai.networks import PrompterOutput
from nucsam_monai.utils.instances import connected_components
from nucsam_monai.utils.prediction import prediction_from_instances
from tests.handlers.tiny_evaluation import evaluator, toy_items

COLUMNS = (*ForegroundMetric.columns, *InstanceSegmentationMetric.columns)


def evaluated(folder, report, runs=1, groups=(None,) * 4):
    items = toy_items(folder)
    for item, group in zip(items, groups, strict=True):
        item.update({"group": group} if group else {})
    engine = evaluator(
        items,
        [NamedMetricsHandler(InstanceSegmentationMetric()), report],
        key_val_metric={"val_dice": NamedMetricsHandler(ForegroundMetric())},
    )
    for _ in range(runs):
        engine.run()
    return items


def expected_rows(items):
    rows = []
    for item in items:
        truth, found = item["instances"][0].numpy(), connected_components(item["image"][0].numpy() >= 0.5)
        values = (*foreground_metrics(truth, found), *instance_metrics(truth, found)[:5])
        rows.append({"id": item["id"], "domain": item["domain"], **dict(zip(COLUMNS, values, strict=True))})
    return rows


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(row, *texts):
    return {key: float(value) for key, value in row.items() if key not in texts}


@pytest.mark.parametrize("runs", [1, 2])
def test_tables_hold_the_metrics_of_every_image(tmp_path, runs):
    items = evaluated(tmp_path, EvaluationReport(tmp_path / "out", {"seed": 7, "weights": None}), runs)
    rows = expected_rows(items)
    per_image = read_csv(tmp_path / "out" / "per_image.csv")
    assert [(row["id"], row["domain"]) for row in per_image] == [
        ("0", "a"),
        ("1", "b"),
        ("2", "a"),
        ("3", "a"),
    ]
    for found, row in zip(per_image, rows, strict=True):
        assert numbers(found, "id", "domain") == pytest.approx(
            {key: row[key] for key in COLUMNS}, nan_ok=True, abs=1e-12
        )
    summary = summarise_by_domain(rows)
    assert [row["images"] for row in summary] == [3, 1, 4]
    for found, row in zip(read_csv(tmp_path / "out" / "summary.csv"), summary, strict=True):
        assert found["domain"] == row["domain"]
        assert numbers(found, "domain") == pytest.approx(numbers(row, "domain"), nan_ok=True)
    document = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert document["seed"] == 7
    assert document["weights"] is None
    assert [row["skipped_images"] for row in document["summary"]] == [1, 0, 1]
    assert document["summary"][1]["dice"] == 1
    assert document["summary"][0]["aji"] == pytest.approx(0.25)


def test_intervals_are_over_groups_where_there_are_groups(tmp_path):
    evaluated(tmp_path, EvaluationReport(tmp_path / "images"))
    evaluated(tmp_path, EvaluationReport(tmp_path / "groups"), groups=("s", None, "s", "s"))
    by_image, by_group = (read_csv(tmp_path / name / "summary.csv") for name in ("images", "groups"))
    assert [row["dice"] for row in by_image] == [row["dice"] for row in by_group]
    assert float(by_image[0]["dice_ci_low"]) < float(by_image[0]["dice"]) < float(by_image[0]["dice_ci_high"])
    assert by_group[0]["dice_ci_low"] == "nan"  # one slide
    assert [row["group"] for row in read_csv(tmp_path / "groups" / "per_image.csv")] == ["s", "", "s", "s"]
    document = json.loads((tmp_path / "groups" / "summary.json").read_text())
    assert document["summary"][0]["dice_ci_low"] is None


@pytest.mark.parametrize(
    ("overlays_per_domain", "names"),
    [(3, ["a_0.png", "a_2.png", "a_3.png", "b_1.png"]), (1, ["a_0.png", "b_1.png"]), (0, [])],
)
def test_first_images_of_every_domain_get_an_overlay(tmp_path, overlays_per_domain, names):
    evaluated(tmp_path, EvaluationReport(tmp_path / "out", overlays_per_domain=overlays_per_domain), runs=2)
    found = sorted((tmp_path / "out").glob("overlays/*"))
    assert [path.name for path in found] == names
    for path in found:
        height, width = read_image(path).shape[:2]
        assert width > height  # three panels beside each other


CLASSES = ("a", "b")


def truths(count=3):
    rng = np.random.default_rng(0)
    for number in range(count):
        instances = np.zeros((24, 24), dtype=np.int32)
        for nucleus in range(number * 2):
            y, x = 2 + 11 * (nucleus // 2) + rng.integers(0, 3), 2 + 11 * (nucleus % 2)
            instances[y : y + 7, x : x + 7] = nucleus + 1
        yield f"image {number}", instances, np.arange(number * 2) % 2


def predicted(instances, classes):
    moved = np.roll(instances, 1, axis=1)
    return prediction_from_instances(
        moved, scores=np.linspace(0.5, 1, len(classes)), class_ids=1 - classes, class_names=CLASSES
    )


@pytest.fixture
def items(tmp_path):
    found = []
    for name, instances, classes in truths():
        Image.new("RGB", (24, 24)).save(tmp_path / f"{name}.png")
        item = {"id": name, "domain": "d", "image_path": str(tmp_path / f"{name}.png")}
        item |= {"instances": torch.from_numpy(instances)[None], "point_classes": torch.from_numpy(classes)}
        found.append({**item, "image": torch.zeros(3, 24, 24), "prediction": predicted(instances, classes)})
    return found


def run(items, evaluation):
    predictions = iter([item["prediction"] for item in items])
    batches = [
        {
            key: value[None] if isinstance(value, torch.Tensor) else [value]
            for key, value in item.items()
            if key != "prediction"
        }
        for item in items
    ]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches,
        network=nn.Identity(),
        inferer=lambda image, network: next(predictions),
        prepare_batch=lambda batch, *_, **__: (batch["image"], None),
        decollate=False,
        val_handlers=[DecollatePrediction(), evaluation],
    )
    evaluator.run()
    return evaluator.state.metrics


@pytest.mark.parametrize("names", [CLASSES, ("nucleus",)])
def test_it_is_the_evaluation_of_the_dataset(items, names, tmp_path):
    evaluation = NucleiEvaluation(
        names, 6.0, output_dir=tmp_path / "out", facts={"seed": 7}, overlays_per_domain=2
    )
    metrics = run(items, evaluation)
    typed = len(names) > 1
    expected = evaluate(
        (
            EvaluationSample(
                item["id"],
                item["instances"][0].numpy(),
                item["prediction"].instances,
                y_classes=dict(enumerate(item["point_classes"].tolist(), 1)) if typed else None,
                y_pred_classes=dict(enumerate((1 - item["point_classes"]).tolist(), 1)) if typed else None,
                scores=dict(enumerate(item["prediction"].table["score"].tolist(), 1)),
                domain="d",
            )
            for item in items
        ),
        class_names=names,
        radius_px=6.0,
    )
    np.testing.assert_equal(evaluation.report.to_dict(), expected.to_dict())
    overall = expected.summary[-1].estimates
    assert metrics["val_pq"] == overall["pq"].value > 0
    assert metrics["val_hovernet_f1"] == 1
    assert metrics.get("val_mpq") == (0 if typed else None)  # every class is wrong
    with (tmp_path / "out" / "per_image.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 2


def test_without_a_folder_nothing_is_written(items, tmp_path):
    before = set(tmp_path.iterdir())
    evaluation = NucleiEvaluation(CLASSES, 6.0)
    assert run(items, evaluation) == run(items, evaluation)
    assert set(tmp_path.iterdir()) == before


def test_points_of_a_prompter_become_rows():
    class OneNucleus(nn.Module):
        def forward(self, image):
            points = torch.tensor([[[40.0, 5], [9, 9]]])
            return PrompterOutput(points, torch.tensor([[[0.0, 4, 1], [0, 0, 1]]]), None)

    item = {"image": torch.zeros(3, 16, 16), "id": "a", "points": torch.tensor([[8.0, 8]])}
    item |= {"point_classes": torch.tensor([1]), "mask": torch.zeros(1, 16, 16)}
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[collate_points([item])],
        network=OneNucleus(),
        prepare_batch=PreparePrompterBatch(),
        decollate=False,
        val_handlers=[DecollatePoints(radius_px=3)],
    )
    evaluator.run()
    (output,), (batch,) = evaluator.state.output, evaluator.state.batch
    assert output["pred"][:, :3].tolist() == [[15, 5, 1]]  # clipped to the image
    assert output["label"].tolist() == [[8, 8, 1]]
    assert batch["id"] == "a"
    assert "points" not in batch


def engine_with(*outputs: dict) -> SimpleNamespace:
    items = [{"domain": "d", "id": str(number)} for number in range(len(outputs))]
    return SimpleNamespace(state=SimpleNamespace(batch=items, output=list(outputs)))


def test_label_maps_and_classes_are_kept(tmp_path: Path) -> None:
    instances = np.array([[0, 3], [5, 5]], dtype=np.int32)
    typed = prediction_from_instances(instances, class_ids=np.array([1, 0]), class_names=("a", "b"))
    plain = prediction_from_instances(np.zeros((2, 2), dtype=np.int32))
    LabelMapWriter(tmp_path).write(engine_with({"pred": typed}, {"pred": plain}))
    assert np.array_equal(read_label_map(tmp_path / "d_0.tif"), instances)
    assert json.loads((tmp_path / "d_0.json").read_text()) == {"3": 1, "5": 0}
    assert not read_label_map(tmp_path / "d_1.tif").any()
    assert {path.name for path in tmp_path.iterdir()} == {"d_0.tif", "d_0.json", "d_1.tif"}


def test_every_image_gets_its_four_files(tmp_path):
    items = toy_items(tmp_path)
    evaluator(items, [PredictionWriter(tmp_path / "out")]).run()
    suffixes = (".geojson", "_instances.tif", "_nuclei.csv", "_overlay.png")
    expected = sorted(item["id"] + suffix for item in items for suffix in suffixes)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == expected
    for item, nuclei, score in zip(items, [1, 1, 0, 0], [0.75, 0.8, None, None], strict=True):
        stem = tmp_path / "out" / item["id"]
        probability = item["image"][0].numpy()
        instances = tifffile.imread(f"{stem}_instances.tif")
        np.testing.assert_array_equal(instances > 0, probability >= 0.5)
        with Path(f"{stem}_nuclei.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == nuclei
        assert all(np.isclose(float(row["score"]), score) for row in rows)
        document = json.loads(stem.with_suffix(".geojson").read_text())
        assert len(document["features"]) == nuclei
        overlay = read_image(f"{stem}_overlay.png")
        pixels = item["pixels"].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(overlay[instances == 0], pixels[instances == 0])
