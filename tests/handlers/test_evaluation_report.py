import csv
import json

import pytest

from nucsam_monai.handlers import EvaluationReport, NamedMetricsHandler
from nucsam_monai.io import read_image
from nucsam_monai.metrics import foreground_metrics, instance_metrics
from nucsam_monai.metrics.cumulative import ForegroundMetric, InstanceSegmentationMetric
from nucsam_monai.metrics.summary import summarise_by_domain
from nucsam_monai.utils.instances import connected_components
from tests.handlers.tiny_evaluation import evaluator, toy_items

COLUMNS = (*ForegroundMetric.columns, *InstanceSegmentationMetric.columns)


def evaluate(folder, report, runs=1, groups=(None,) * 4):
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
    items = evaluate(tmp_path, EvaluationReport(tmp_path / "out", {"seed": 7, "weights": None}), runs)
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
    evaluate(tmp_path, EvaluationReport(tmp_path / "images"))
    evaluate(tmp_path, EvaluationReport(tmp_path / "groups"), groups=("s", None, "s", "s"))
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
    evaluate(tmp_path, EvaluationReport(tmp_path / "out", overlays_per_domain=overlays_per_domain), runs=2)
    found = sorted((tmp_path / "out").glob("overlays/*"))
    assert [path.name for path in found] == names
    for path in found:
        height, width = read_image(path).shape[:2]
        assert width > height  # three panels beside each other
