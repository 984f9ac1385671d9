"""UN-SAM on a domain with two classes next to one without: SegPC's nuclei and cytoplasms."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nucsam_monai.networks.sam import read_header
from nucsam_monai.segmenter import Segmenter
from nucsam_monai.utils.errors import ConfigurationError
from tests.bundles.conftest import Training
from tests.bundles.promptnucseg_runs import CLASS_NAMES, write_typed_dataset
from tests.bundles.runs import HEIGHT, WIDTH, draw, raised_from, write_datasets
from tests.bundles.unsam_runs import UNSAM

CLASSES = {"typed": list(CLASS_NAMES)}
QUERIES = "network_def#decoder#queries_per_domain"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_typed_dataset(write_datasets(tmp_path_factory.mktemp("classes")))


@pytest.fixture(scope="module")
def training(data: Path, micro: None, tmp_path_factory: pytest.TempPathFactory) -> Training:
    folder = tmp_path_factory.mktemp("training")
    settings = {**UNSAM.tiny, "dataset_dir": str(data), "domains": ["bright", "dark", "typed"]}
    workflow = UNSAM.train(**settings, **{QUERIES: {"typed": 2}}, output_dir=str(folder))
    metrics = workflow.evaluator.state.metrics
    assert {"val_dice_left", "val_hd95_right", "val_loss_bright", "val_loss_typed"} <= set(metrics)
    assert all(np.isfinite(metrics[f"val_loss_{domain}"]) for domain in ("bright", "typed"))
    seen = {}
    for batch in workflow.parser.get_parsed_content("train::dataloader"):
        seen[batch["domain"][0]] = batch["label"].shape[1]
    assert seen == {"bright": 1, "dark": 1, "typed": 2}
    return Training(folder, settings, metrics["val_dice"], "off")


def test_every_class_has_its_own_mask(data: Path, training: Training) -> None:
    """The class is the half of the image that a nucleus lies in."""
    settings = {**training.settings, "output_dir": str(training.folder / "again")}
    workflow = UNSAM.bundle(**settings, **{QUERIES: {"typed": 2}})
    dataset = workflow.parser.get_parsed_content("validate::dataset")
    masks = {item["domain"]: (item["label"], item["instances"]) for item in dataset}
    label, instances = masks["typed"]
    assert label.shape == (2, HEIGHT, WIDTH)
    assert torch.equal(label.sum(dim=0) > 0, instances[0] > 0)
    assert label[0, :, : WIDTH // 2].sum() == label[0].sum() > 0
    assert label[1, :, WIDTH // 2 :].sum() == label[1].sum() > 0
    assert masks["bright"][0].shape == (1, HEIGHT, WIDTH)


def test_evaluation_measures_every_class_and_their_mean(training: Training, tmp_path: Path) -> None:
    settings = {**training.settings, "output_dir": str(tmp_path), "checkpoint": str(training.weights)}
    workflow = UNSAM.evaluate(**settings, splits=["validation"])
    metrics = workflow.evaluator.state.metrics
    assert metrics["val_dice"] == training.val_dice
    with (tmp_path / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        own = [float(row[f"dice_{name}"]) for name in CLASS_NAMES if row[f"dice_{name}"] not in ("", "nan")]
        assert len(own) == (2 if row["domain"] == "typed" else 0)
        if own:
            assert float(row["dice"]) == pytest.approx(np.mean(own))
    summary = json.loads((tmp_path / "summary.json").read_text())["summary"]
    assert {row["domain"] for row in summary} >= {"bright", "typed"}


def test_inference_names_the_class_of_every_nucleus(training: Training) -> None:
    assert json.loads(read_header(training.weights)["settings"])["classes"] == CLASSES
    segmenter = Segmenter(UNSAM.folder, training.weights, "cpu", {"image_size": 32, "precision": "fp32"})
    image = draw(np.random.default_rng(0), 4)[0]
    found: dict[str, Any] = {
        domain: segmenter.segment(image, domain=domain, threshold=0.0)
        for domain in ("typed", "bright", "mean")
    }
    assert found["typed"].class_names == CLASS_NAMES
    assert set(found["typed"].table["class_id"]) <= {0, 1}
    assert (found["typed"].instances > 0).all()
    assert found["bright"].class_names == found["mean"].class_names == ("nucleus",)
    assert segmenter.class_names == ("nucleus",)  # without a domain
    assert Segmenter(UNSAM.folder, training.weights, "cpu", {"domain": "typed"}).class_names == CLASS_NAMES


@pytest.mark.parametrize(
    ("queries", "found"), [({"typed": 3}, "3 for domain 'typed'"), (2, "2 for domain 'bright'")]
)
def test_queries_that_are_not_classes_are_refused(
    training: Training, queries: Any, found: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError) as error:
        UNSAM.train(**{**training.settings, "output_dir": str(tmp_path)}, **{QUERIES: queries})
    message = raised_from(error.value, ConfigurationError) or ""
    assert f"decoder.queries_per_domain: found {found}, whose classes in" in message
