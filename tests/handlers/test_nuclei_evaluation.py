import csv

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from PIL import Image
from torch import nn

from nucsam_monai.engines import PreparePrompterBatch, collate_points
from nucsam_monai.handlers import DecollatePoints, DecollatePrediction, NucleiEvaluation
from nucsam_monai.metrics import EvaluationSample, evaluate
from nucsam_monai.networks import PrompterOutput
from nucsam_monai.utils.prediction import prediction_from_instances

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
