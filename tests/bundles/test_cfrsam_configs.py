"""CFR-SAM's network in every workflow, what of it learns, and the paper's recipes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from tests.bundles.cfrsam_runs import CFRSAM
from tests.bundles.conftest import TwoStageTraining
from tests.bundles.runs import REPOSITORY, network_of, small_recipe

# dataset: levels, anchor step, weight of the background, batches, epochs, radius, mask filter, NMS, learning rate, drop
RECIPES: dict[str, tuple[Any, ...]] = {
    "pannuke": (3, 8, 0.4, 16, 200, 3.0, False, 0.5, 1e-4, 50),
    "cpm17": (4, 16, 0.25, 8, 200, 12.0, True, 0.5, 8e-5, 150),
    "monuseg": (4, 16, 0.2, 4, 600, 11.0, True, 0.3, 1e-4, 100),
}
PLAIN = {"hmfm": "none", "bgmr": "none"}
LEARNING: dict[str, tuple[dict[str, Any], int]] = {
    "CFR-SAM": ({}, 8_275_834),
    "ViT-H": ({"sam_variant": "vit_h"}, 18_804_338),
    "everything": ({"tune": "full", **PLAIN}, 93_735_472),
    "decoder": ({"tune": "head", **PLAIN}, 4_058_340),
    "LoRA": ({"tune": "lora", **PLAIN}, 4_205_796),
    "adapter": ({"tune": "adapter", **PLAIN}, 11_159_268),
    "no MALA": ({"tune": "head"}, 4_573_618),
    "no HMFM": ({"hmfm": "none"}, 8_011_642),
    "no BGMR": ({"bgmr": "none"}, 8_024_748),
    "rank 32": ({"mala_rank": 32}, 4_573_618 + 24 * 78_067),
}


def read(name: str) -> dict[str, Any]:
    return json.loads((CFRSAM.configs / name).read_text())


def test_train_and_inference_build_the_same_networks_and_results() -> None:
    train, inference = read("train.json"), read("inference.json")
    assert train["network_def"] == inference["network_def"]
    assert train["joint"]["inferer"] == inference["inferer"]
    assert train["joint"]["find_points"] == inference["find_points"]
    parts = json.dumps([inference[name] for name in ("network_def", "inferer", "find_points")])
    shared = {name for name in train if f'"@{name}"' in parts} - {"class_names"}
    assert {name: train[name] for name in shared} == {name: inference.get(name) for name in shared}


def test_the_overlay_for_several_processes_has_every_step_of_the_training() -> None:
    steps = [
        step for step in read("multi_gpu_train.json")["training"] if step != "$torch.distributed.barrier()"
    ]
    assert steps == read("train.json")["training"]


@pytest.mark.parametrize("training", LEARNING)
def test_as_many_parameters_learn_as_the_page_of_the_method_says(training: str) -> None:
    settings, expected = LEARNING[training]
    parser = ConfigParser(read("train.json"))
    parser.update({"sam_variant": "vit_b", "train_sam": False, "class_names": ["nucleus"], **settings})
    parser.parse()
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    found = sum(parameter.numel() for parameter in network.segmentor.parameters() if parameter.requires_grad)
    assert found == expected
    page = (REPOSITORY / "docs" / "methods" / "cfrsam.md").read_text()
    assert f"{expected:,}" in page or f"{expected / 1e6:.1f} M" in page


@pytest.fixture
def small(cfrsam_training: TwoStageTraining, tmp_path: Path) -> dict[str, Any]:
    recipe = small_recipe(cfrsam_training.settings, tmp_path)
    return {**recipe, "backbone": "compact", "split_protocol": None, "overlap_px": 8}


@pytest.mark.parametrize("dataset", RECIPES)
def test_a_recipe_is_that_of_the_paper(dataset: str, small: dict[str, Any]) -> None:
    recipe = {**read("paper.json"), **read(f"paper_{dataset}.json")}
    assert (recipe["sam_variant"], recipe["backbone"]) == ("vit_b", "convnext_small")
    workflow = CFRSAM.bundle("paper", f"paper_{dataset}", **small)

    def content(key: str) -> Any:
        return workflow.parser.get_parsed_content(key)

    network, finder, optimizer = network_of(workflow), content("joint::find_points"), content("optimizer")
    assert (
        network.prompter.options.levels,
        network.prompter.options.step,
        content("prompter_stage::loss").background_weight,
        content("prompter_stage::sampler").batch_size,
        content("prompter_stage::sampler").epochs,
        finder.radius_px,
        finder.mask_filter,
        content("joint::inferer").nms_threshold,
        optimizer.param_groups[0]["lr"],
        *content("lr_scheduler").milestones,
    ) == RECIPES[dataset]
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["weight_decay"] == 1e-4
    prompts = content("train::prompts")[0]
    assert (prompts.max_nuclei, prompts.prompts) == (25, "predicted")
    sampler = content("train::sampler")
    assert (sampler.batch_size, sampler.epochs) == (2, 200)
    loss = content("loss")
    assert (loss.masks.focal_weight, loss.masks.dice, loss.boundary_weight) == (20.0, "pooled", 0.01)
    assert content("validate::evaluator").data_loader.dataset.data[0]["id"].startswith("validation")


def test_a_recipe_moves_found_points_with_their_nuclei(small: dict[str, Any]) -> None:
    workflow = CFRSAM.bundle("paper", "paper_pannuke", **small)
    search = workflow.parser.get_parsed_content("train::search::dataloader")
    finder = workflow.parser.get_parsed_content("joint::find_points")
    found = workflow.parser.get_parsed_content("train::found")
    found.find(search, finder, "fp32")
    assert len(found) == 3
    dataset = workflow.parser.get_parsed_content("train::dataset")
    prompted = 0
    for item in [dataset[number] for number in (1, 2) for _ in range(5)]:
        assert item["image"].shape == (3, 64, 64)
        prompted += len(item["points"])
        for (x, y), mask in zip(item["points"][:, 0].round().int().tolist(), item["masks"], strict=True):
            assert mask[y, x]
    assert prompted > 0
