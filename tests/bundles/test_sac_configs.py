"""The SAC bundle's network in every workflow, and the paper's recipe."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nucsam_monai.inferers import ResizeInferer
from nucsam_monai.losses import SACMaskLoss
from tests.bundles.conftest import Training
from tests.bundles.runs import network_of, small_recipe
from tests.bundles.sac_runs import SAC

ONLY_TRAINING = {"training", "pretrain_epochs", "warmup_epochs"}


def read(name: str) -> dict[str, Any]:
    return json.loads((SAC.configs / name).read_text())


def test_train_and_inference_build_the_same_network() -> None:
    train, inference = read("train.json"), read("inference.json")
    generator = train["network_def"]["generator"]
    assert set(generator) - set(inference["network_def"]["generator"]) == ONLY_TRAINING
    train["network_def"]["generator"] = {k: v for k, v in generator.items() if k not in ONLY_TRAINING}
    assert train["network_def"] == inference["network_def"]
    shared = {name for name in train if f'"@{name}"' in json.dumps(inference["network_def"])}
    assert shared
    told = "$nucsam_monai.networks.sam.trained_setting(@checkpoint, 'image_size', {})"
    assert inference.pop("image_size") == told.format(train.pop("image_size"))
    shared.remove("image_size")
    assert {name: train[name] for name in shared} == {name: inference[name] for name in shared}


@pytest.fixture
def paper(sac_training: Training, tmp_path: Path) -> dict[str, Any]:
    return small_recipe(sac_training.settings, tmp_path)


def test_the_papers_recipe_is_that_of_the_paper(paper: dict[str, Any]) -> None:
    recipe = read("paper.json")
    assert (recipe["sam_variant"], recipe["image_size"], recipe["epochs"]) == ("vit_h", 1024, 100)
    workflow = SAC.bundle("paper", **paper)

    def content(key: str) -> Any:
        return workflow.parser.get_parsed_content(key)

    optimizer, scheduler = content("optimizer"), content("lr_scheduler")
    assert type(optimizer) is torch.optim.Adam
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-4]
    assert optimizer.defaults["weight_decay"] == 0
    assert (type(scheduler), scheduler.step_size, scheduler.gamma) == (
        torch.optim.lr_scheduler.StepLR,
        10,
        0.5,
    )
    sampler = content("train::sampler")
    assert (sampler.epochs, sampler.batch_size, sampler.samples_per_epoch) == (100, 2, None)
    assert isinstance(content("validate::spatial_inferer"), ResizeInferer)
    assert [type(one).__name__ for one in content("train::augmentation")] == [
        "Resized",
        "RandFlipd",
        "RandFlipd",
        "RandRotate90d",
    ]
    early_stopping = content("early_stopping")
    assert (early_stopping.patience, early_stopping.metric) == (10, "val_dice")
    network = network_of(workflow)
    assert (network.adapter, network.lora_options.rank) == ("lora", "d/4")
    generator = network.generator_options
    assert (generator.n_points, generator.selection, generator.training, generator.input_size) == (
        1,
        "O",
        "joint",
        None,
    )
    loss = content("mask_loss")
    assert (type(loss), loss.pixel_weight, loss.pixel.gamma, loss.pixel.alpha) == (
        SACMaskLoss,
        20.0,
        2.0,
        0.25,
    )


def test_the_papers_recipe_trains_and_evaluates(paper: dict[str, Any], tmp_path: Path) -> None:
    SAC.train("paper", **paper, epochs=1)
    weights = tmp_path / "model.safetensors"
    SAC.evaluate("paper", **{**paper, "output_dir": str(tmp_path / "out")}, checkpoint=str(weights))
    assert (tmp_path / "out" / "summary.json").is_file()


def test_a_medical_sam_learns_from_points_in_sequence_by_the_settings_of_unsam(
    paper: dict[str, Any], tmp_path: Path
) -> None:
    samed = {"adapter": "lora", "lora_rank": 4, "train_prompt_encoder": True, "n_points": 0, "n_expert": 8}
    settings = {**paper, **samed, "schedule": "sequential"}
    workflow = SAC.bundle("paper", "unsam_protocol", **settings)
    scheduler = workflow.parser.get_parsed_content("lr_scheduler")
    assert (type(scheduler), scheduler.gamma) == (torch.optim.lr_scheduler.ExponentialLR, 0.98)
    assert workflow.parser.get_parsed_content("early_stopping") is None
    trained = SAC.train("paper", "unsam_protocol", **settings, epochs=1).trainer
    assert trained.state.epoch == 2  # one of each domain
    weights = str(tmp_path / "model.safetensors")
    SAC.evaluate(
        "paper", "unsam_protocol", **{**settings, "output_dir": str(tmp_path / "out")}, checkpoint=weights
    )
    assert (tmp_path / "out" / "summary.json").is_file()
