"""The UN-SAM bundle's network and the paper's recipe."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nucsam_monai.inferers import ResizeInferer
from tests.bundles.conftest import Training
from tests.bundles.runs import network_of, small_recipe
from tests.bundles.unsam_runs import CONFIGS, bundle


def read(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / name).read_text())


def test_its_keys_of_the_inference_exist() -> None:
    assert {"domain", "unseen_domain"} <= set(read("inference.json"))


def test_train_and_inference_build_the_same_network() -> None:
    assert read("train.json")["network_def"] == read("inference.json")["network_def"]


@pytest.fixture
def paper(training: Training, tmp_path: Path) -> dict[str, Any]:
    return {**small_recipe(training.settings, tmp_path), "domains": ["dark", "bright"]}


def test_the_papers_recipe_is_that_of_the_paper(paper: dict[str, Any]) -> None:
    recipe = read("paper.json")
    assert (recipe["sam_variant"], recipe["image_size"]) == ("vit_h", 1024)
    assert recipe["domains"] == ["dsb2018", "monuseg", "tnbc"]
    workflow = bundle("paper", **paper)

    def content(key: str) -> Any:
        return workflow.parser.get_parsed_content(key)

    optimizer, scheduler = content("optimizer"), content("lr_scheduler")
    assert type(optimizer) is torch.optim.Adam
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-4]
    assert optimizer.defaults["weight_decay"] == 0
    assert type(scheduler) is torch.optim.lr_scheduler.ExponentialLR
    assert scheduler.gamma == 0.98
    sampler = content("train::sampler")
    assert (sampler.epochs, sampler.batch_size, sampler.schedule) == (30, 4, "sequential")
    assert sampler.samples_per_epoch is None
    assert workflow.trainer.state.max_epochs == 60
    assert isinstance(content("validate::spatial_inferer"), ResizeInferer)
    network = network_of(workflow)
    encoder, hint = network.encoder_options, network.spgen_options
    assert (encoder.common_ratio, encoder.specific_ratio, encoder.trainable) == (2.0, 0.25, "bypass")
    assert (encoder.bypass, hint.enabled, hint.variant, hint.inject, hint.tau) == (
        True,
        True,
        "pyramid",
        "mask_prompt",
        0.95,
    )
    assert network.decoder_options.domain_queries
    resize, flip = content("train::augmentation")
    assert type(resize).__name__ == "Resized"
    assert (type(flip).__name__, flip.prob) == ("RandFlipd", 0.1)
    loss = content("mask_loss")
    assert (loss.focal_weight, loss.focal.gamma) == (0.8, 2.0)


def test_the_papers_recipe_trains(paper: dict[str, Any], tmp_path: Path) -> None:
    workflow = bundle("paper", **paper, epochs=1)
    workflow.run()
    assert workflow.trainer.state.epoch == 2  # one epoch of each domain
    assert (tmp_path / "model.safetensors").is_file()
