"""The bundle of baselines from training to evaluation and inference, in one process."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor, nn

from nucsam_monai import load
from nucsam_monai.inferers import ResizeInferer
from nucsam_monai.losses import HoVerNetBranchLoss, MaskLoss
from nucsam_monai.networks.baselines import DENSE_BUILDERS, Built
from nucsam_monai.networks.sam import read_header
from nucsam_monai.systems import SYSTEMS, SystemRule, default_rule, registry, trained_rule, trained_size
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError
from tests.bundles.baselines_runs import BASELINES
from tests.bundles.conftest import Training, train_once
from tests.bundles.promptnucseg_runs import CLASS_NAMES, write_typed_dataset
from tests.bundles.runs import (
    BUNDLES,
    HEIGHT,
    WIDTH,
    BundleRuns,
    assert_same_tensors,
    draw,
    network_of,
    raised_from,
)
from tests.handlers.tracked_engines import Store

SIDES = {
    "unet": 32,
    "unetpp": 32,
    "attention_unet": 32,
    "unet3p": 32,
    "nnunet": 32,
    "swin_unetr": 64,
    "pretrained_unet": 64,
}
"""Sides of the smallest images that each small network trains with."""


class TinyHoVerNet(nn.Module):
    """What HoVer-Net gives, from one convolution."""

    def __init__(self, classes: int = 1) -> None:
        super().__init__()
        self.types = classes + 1 if classes > 1 else 0
        self.branches = nn.Conv2d(3, 4 + self.types, kernel_size=3, padding=1)

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        background, nucleus, distances, types = self.branches(image).split([1, 1, 2, self.types], dim=1)
        if self.training:
            maps = {
                "nucleus_prediction": torch.cat([background, nucleus], 1),
                "horizontal_vertical": distances,
            }
            return {**maps, "type_prediction": types} if self.types else maps
        return torch.cat([nucleus - background, distances, types[:, 1:]], dim=1)


@pytest.fixture
def tiny_hovernet(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(SYSTEMS["hovernet"], build=lambda order: Built(TinyHoVerNet(order.classes), 1))
    monkeypatch.setattr(registry, "SYSTEMS", {**SYSTEMS, "hovernet": tiny})


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory, dataset_dir: str, template_database: Path) -> Training:
    return train_once(BASELINES, tmp_path_factory.mktemp("baseline"), dataset_dir, template_database)


@pytest.fixture
def settings(dataset_dir: str, tmp_path: Path) -> dict[str, Any]:
    return {**BASELINES.tiny, "dataset_dir": dataset_dir, "output_dir": str(tmp_path / "train")}


def evaluate(training: Training, output: Path, **settings: Any) -> Any:
    shared = {**training.settings, "checkpoint": str(training.weights), "output_dir": str(output)}
    return BASELINES.evaluate(**{**shared, **settings})


def infer(settings: dict[str, Any], weights: Path, folder: Path, **others: Any) -> Path:
    """Segment an image, by the system and size that the weights name, and return the folder of the results."""
    (folder / "images").mkdir()
    Image.fromarray(draw(np.random.default_rng(1), 4)[0]).save(folder / "images" / "one.png")
    names = ("device", "image_size", "precision")
    workflow = BASELINES.bundle(
        base="inference",
        **{key: settings[key] for key in names},
        **others,
        checkpoint=str(weights),
        input=str(folder / "images"),
        output_dir=str(folder / "out"),
    )
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    return folder / "out"


def test_training_is_one_tracked_run_whose_weights_name_the_network(unet: Training) -> None:
    header = read_header(unet.weights)
    assert (header["method"], header["options"]) == ("unet", '{"size": "small"}')
    store = Store(unet.store_uri)
    run = store.only_run("nucsam/baselines")
    assert run.info.status == "FINISHED"
    assert run.data.params["baseline"] == "unet"
    assert store.curve(run, "val_dice")[2] == unet.val_dice
    for metric in ("train_loss", "lr_group_0", "val_pq", "val_loss"):
        assert set(store.curve(run, metric)) == {1, 2}


def test_evaluation_repeats_the_numbers_of_the_training(unet: Training, tmp_path: Path) -> None:
    evaluated = evaluate(unet, tmp_path, splits=["validation"]).evaluator.state.metrics["val_dice"]
    assert repr(evaluated) == read_header(unet.weights)["val_dice"]
    facts = json.loads((tmp_path / "summary.json").read_text())
    assert facts["baseline"] == "unet"
    assert {row["domain"] for row in facts["summary"]} >= {"bright", "dark"}
    assert {"dice", "iou", "weighted_f1", "weighted_iou", "aji", "pq"} <= set(facts["summary"][0])


def test_evaluation_refuses_weights_of_another_baseline(unet: Training, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        evaluate(unet, tmp_path, baseline="attention_unet")
    assert "its method is 'unet'" in (raised_from(error.value, CheckpointError) or "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("instances", ["components", "watershed"])
def test_inference_writes_the_instances_of_either_rule(
    unet: Training, tmp_path: Path, instances: str
) -> None:
    output = infer(dict(unet.settings), unet.weights, tmp_path, instances=instances)
    assert tifffile.imread(output / "one_instances.tif").shape == (HEIGHT, WIDTH)
    assert len(list(output.glob("one*"))) == 4


def test_the_papers_recipe_is_that_of_unsam_and_trains(unet: Training, tmp_path: Path) -> None:
    recipe, unsam = (
        json.loads((BUNDLES / name / "configs" / "paper.json").read_text()) for name in ("baselines", "unsam")
    )
    shared = (
        "image_size",
        "epochs",
        "batch_size",
        "samples_per_epoch",
        "lr",
        "max_grad_norm",
        "lr_scheduler",
    )
    for key in (*shared, "val_interval", "fit", "train#flip", "train#augmentation"):
        assert recipe[key] == unsam[key], key
    settings = {**unet.settings, "output_dir": str(tmp_path), "epochs": 1}
    workflow = BASELINES.train("paper", **settings)
    assert isinstance(workflow.parser.get_parsed_content("validate::spatial_inferer"), ResizeInferer)
    assert type(workflow.parser.get_parsed_content("optimizer")) is torch.optim.Adam


def test_a_resumed_training_ends_with_the_same_weights(unet: Training, tmp_path: Path) -> None:
    shared = {**unet.settings, "epochs": 3, "samples_per_epoch": 4}
    for name, steps in (("whole", [3]), ("parts", [1, 3])):
        for step in steps:
            BASELINES.train(
                **{**shared, "train#trainer#max_epochs": step},
                output_dir=str(tmp_path / name),
                resume=step != steps[0],
            )
    for name in ("model.safetensors", "training_state.safetensors"):
        assert_same_tensors(tmp_path / "parts" / name, tmp_path / "whole" / name)


@pytest.mark.parametrize("baseline", sorted(SIDES))
def test_every_baseline_trains_and_validates(settings: dict[str, Any], tmp_path: Path, baseline: str) -> None:
    changed = {"baseline": baseline, "image_size": SIDES[baseline], "samples_per_epoch": 2}
    workflow = BASELINES.train(**{**settings, **changed})
    parser = workflow.parser
    assert isinstance(parser.get_parsed_content("loss_function"), MaskLoss)
    assert read_header(tmp_path / "train" / "model.safetensors")["method"] == baseline
    assert workflow.evaluator.state.output[0]["pred"].foreground.shape == (HEIGHT, WIDTH)


def test_there_is_a_test_of_every_baseline() -> None:
    assert {*SIDES, "hovernet"} == {*DENSE_BUILDERS, "hovernet"}


@pytest.mark.usefixtures("tiny_hovernet")
def test_hovernet_learns_distances_and_parts_nuclei_by_them(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"baseline": "hovernet", "baseline_size": "standard"}
    workflow = BASELINES.train(**settings)
    parser = workflow.parser
    assert isinstance(parser.get_parsed_content("loss_function"), HoVerNetBranchLoss)
    label = workflow.trainer.state.batch["label"]
    assert label.shape[1:] == (3, 32, 32)
    assert (label[:, 1:].min(), label[:, 1:].max()) == (-1, 1)
    output = workflow.evaluator.state.output[0]
    assert output["pred"].instances.shape == output["pred"].foreground.shape == (HEIGHT, WIDTH)
    steps = [type(step).__name__ for step in parser.get_parsed_content("validate#postprocessing").transforms]
    assert steps == ["OwnInstancesd", "CopyItemsd"]
    weights = tmp_path / "train" / "model.safetensors"
    assert len(list(infer(settings, weights, tmp_path).glob("one*"))) == 4


@pytest.mark.usefixtures("tiny_hovernet")
def test_hovernet_learns_the_classes_of_a_dataset_that_has_them(tmp_path: Path) -> None:
    typed = {
        "dataset_dir": str(write_typed_dataset(tmp_path / "data")),
        "output_dir": str(tmp_path / "train"),
    }
    settings = {**BASELINES.tiny, **typed, "baseline": "hovernet", "baseline_size": "standard"}
    workflow = BASELINES.train(**settings)
    assert workflow.trainer.state.batch["label"].shape[1:] == (4, 32, 32)
    assert workflow.evaluator.state.output[0]["pred"].class_names == CLASS_NAMES
    weights = tmp_path / "train" / "model.safetensors"
    assert json.loads(read_header(weights)["class_names"]) == list(CLASS_NAMES)
    evaluated = BASELINES.evaluate(
        **{**settings, "checkpoint": str(weights), "output_dir": str(tmp_path / "e")}
    )
    for metrics in (workflow.evaluator.state.metrics, evaluated.evaluator.state.metrics):
        assert {"val_dice", "val_pq", "val_mpq", "val_hovernet_f1"} <= set(metrics)
    facts = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert facts["baseline"] == "hovernet"
    assert "mpq" in facts["summary"][0]
    assert len(list(infer(settings, weights, tmp_path).glob("one*"))) == 4
    segmenter = load(BASELINES.configs.parent, weights, "cpu", image_size=settings["image_size"])
    assert segmenter.class_names == CLASS_NAMES


@pytest.mark.parametrize(
    ("baseline", "rule", "side"), [("stardist", "own", 32), ("unet-tu-test_resnet", "watershed", 64)]
)
def test_a_system_goes_all_the_way(
    settings: dict[str, Any], tmp_path: Path, baseline: str, rule: SystemRule, side: int
) -> None:
    settings |= {"baseline": baseline, "image_size": side}
    if rule != default_rule(baseline):
        settings["instances"] = rule
    trained = BASELINES.train(**settings)
    weights = tmp_path / "train" / "model.safetensors"
    assert (
        json.loads(read_header(weights)["settings"])["instances"] == trained_rule(weights, baseline) == rule
    )
    settings |= {"checkpoint": str(weights), "output_dir": str(tmp_path / "evaluate")}
    named = {key: value for key, value in {**BASELINES.tiny, **settings}.items() if "baseline" not in key}
    evaluated = BundleRuns("baselines", named).evaluate(splits=["validation"])
    for metric in ("val_dice", "val_pq"):
        assert evaluated.evaluator.state.metrics[metric] == trained.evaluator.state.metrics[metric]
    assert json.loads((tmp_path / "evaluate" / "summary.json").read_text())["instances"] == rule
    output = infer(settings, weights, tmp_path)
    assert tifffile.imread(output / "one_instances.tif").shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("wrong", [{"baseline": "vnet"}, {"baseline": "hovernet"}])
def test_an_unknown_baseline_or_size_is_refused(settings: dict[str, Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError) as error:
        BASELINES.bundle(**{**settings, **wrong})
    assert raised_from(error.value, ConfigurationError)


def test_one_domain_after_the_other_is_a_schedule_too(settings: dict[str, Any], tmp_path: Path) -> None:
    workflow = BASELINES.train(**{**settings, "output_dir": str(tmp_path)}, schedule="sequential")
    assert workflow.trainer.state.epoch == 2
    header = read_header(tmp_path / "model.safetensors")
    # The weights are those of the last domain, as in UN-SAM's sequential training.
    assert header["epoch"] == "2"
    assert f"val_loss_{workflow.parser.get_parsed_content('domains')[1]}" in header


def test_the_whole_network_is_what_is_compiled(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(
        "nucsam_monai.engines.bundle.compile_modules", lambda modules, _: compiled.extend(modules)
    )
    workflow = BASELINES.bundle(**settings, compile=True)
    assert compiled == [network_of(workflow)]


def test_every_property_that_monai_asks_for_is_there(unet: Training, tmp_path: Path) -> None:
    shared = {**unet.settings, "output_dir": str(tmp_path)}
    assert BASELINES.bundle(**shared).check_properties() == []
    assert BASELINES.bundle("evaluate", **shared, checkpoint=str(unet.weights)).check_properties() == []


def test_train_and_inference_build_the_same_network() -> None:
    train, inference = (
        json.loads((BASELINES.configs / name).read_text()) for name in ("train.json", "inference.json")
    )
    assert train["network_def"] == inference["network_def"]
    assert inference["baseline"] == f"$nucsam_monai.engines.trained_system('{train['baseline']}')"
    assert trained_size(None) == train["baseline_size"]
    told = "$nucsam_monai.networks.sam.trained_setting(@checkpoint, 'image_size', {})"
    assert inference["image_size"] == told.format(train["image_size"])
