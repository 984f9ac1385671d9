"""The UN-SAM bundle's network and the paper's recipe."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nucsam_monai.inferers import ResizeInferer
from nucsam_monai.networks import UNSAM, Segmentor, trained_unsam
from nucsam_monai.networks.sam import read_header, save_trained
from nucsam_monai.utils.errors import CheckpointError
from tests.bundles.conftest import Training
from tests.bundles.runs import network_of, small_recipe
from tests.bundles.unsam_runs import CONFIGS, bundle


def read(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / name).read_text())


def test_its_keys_of_the_inference_exist() -> None:
    assert {"domain", "unseen_domain"} <= set(read("inference.json"))


def test_without_weights_inference_builds_the_network_of_the_training() -> None:
    options = read("train.json")["network_def"]
    trained = UNSAM(
        read("train.json")["sam_variant"],
        ["nuclei"],
        256,
        **{part: options[part] for part in ("encoder", "spgen", "decoder")},
    )
    assert trained_unsam("none", ["nuclei"], 256).header == trained.header


def test_weights_of_the_training_and_of_the_compact_recipe_name_their_network(
    training: Training, tmp_path: Path
) -> None:
    domains = ["bright", "dark"]
    assert trained_unsam(training.weights, domains, 32).header == {
        key: read_header(training.weights)[key] for key in ("method", "sam_variant", "domains", "options")
    }
    compact = UNSAM("micro", domains, 32, decoder={"queries_per_domain": 2}, spgen={"tau": 0.7})
    save_trained(tmp_path / "compact.safetensors", compact, compact.header)
    assert trained_unsam(tmp_path / "compact.safetensors", domains, 32).header == compact.header
    other = trained_unsam(tmp_path / "compact.safetensors", domains, 32, spgen={"tau": 0.5})
    assert (other.spgen_options.tau, other.masks_per_domain) == (0.5, [2, 2])
    foreign = Segmentor("micro", 32)
    save_trained(tmp_path / "foreign.safetensors", foreign, foreign.header)
    with pytest.raises(CheckpointError, match="weights of 'segmentor'"):
        trained_unsam(tmp_path / "foreign.safetensors", domains, 32)


def test_the_compact_recipe_takes_images_of_chosen_domains_and_has_one_domain_of_its_own(
    training: Training, tmp_path: Path
) -> None:
    tiny = {**training.settings, "output_dir": str(tmp_path), "image_size": 64, "trunk_weights": None}
    workflow = bundle("compact", **{**tiny, "sam_variant": "hybrid", "domains": ["dark"]})
    assert network_of(workflow).domains == ("nuclei",)
    items = workflow.parser.get_parsed_content("train#dataset#data")
    assert {item["domain"] for item in items} == {"dark"}


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
