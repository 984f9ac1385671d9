"""PromptNucSeg's network in every workflow, and the paper's recipes."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bundles.conftest import TwoStageTraining
from tests.bundles.promptnucseg_runs import PROMPTNUCSEG
from tests.bundles.runs import network_of, small_recipe

# dataset: levels, anchor step, weight of the background, masks, negatives, radius, mask filter, NMS, learning rate
RECIPES: dict[str, tuple[Any, ...]] = {
    "pannuke": (3, 8, 0.4, 20, 0, 12.0, False, 0.5, 2e-4),
    "cpm17": (4, 16, 0.25, 25, 1, 12.0, True, 0.5, 1e-4),
    "kumar": (4, 16, 0.2, 25, 0, 11.0, True, 0.3, 1e-4),
}


def read(name: str) -> dict[str, Any]:
    return json.loads((PROMPTNUCSEG.configs / name).read_text())


def test_train_and_inference_build_the_same_networks_and_results() -> None:
    train, inference = read("train.json"), read("inference.json")
    assert train["network_def"] == inference["network_def"]
    assert train["joint"]["inferer"] == inference["inferer"]
    assert train["joint"]["find_points"] == inference["find_points"]
    parts = json.dumps([inference[name] for name in ("network_def", "inferer", "find_points")])
    shared = {name for name in train if f'"@{name}"' in parts} - {"class_names"}
    assert {name: train[name] for name in shared} == {name: default_of(inference, name) for name in shared}


def default_of(inference: dict[str, Any], name: str) -> Any:
    """Return what inference takes where the weights file does not say otherwise."""
    value = inference[name]
    start = f"$nucsam_monai.networks.sam.trained_setting(@checkpoint, '{name}', "
    if isinstance(value, str) and value.startswith(start):
        return ast.literal_eval(value.removeprefix(start).removesuffix(")"))
    return value


def test_every_property_that_monai_asks_for_is_there(
    promptnucseg_training: TwoStageTraining, tmp_path: Path
) -> None:
    workflow = PROMPTNUCSEG.bundle(**promptnucseg_training.settings, output_dir=str(tmp_path))
    assert workflow.check_properties() == []


@pytest.fixture
def small(promptnucseg_training: TwoStageTraining, tmp_path: Path) -> dict[str, Any]:
    recipe = small_recipe(promptnucseg_training.settings, tmp_path)
    return {**recipe, "backbone": "compact", "split_protocol": None, "overlap_px": 8}


@pytest.mark.parametrize("dataset", RECIPES)
def test_a_recipe_is_that_of_the_paper(dataset: str, small: dict[str, Any]) -> None:
    recipe = {**read("paper.json"), **read(f"paper_{dataset}.json")}
    assert (recipe["sam_variant"], recipe["backbone"]) == ("vit_h", "convnext_small")
    workflow = PROMPTNUCSEG.bundle("paper", f"paper_{dataset}", **small)

    def content(key: str) -> Any:
        return workflow.parser.get_parsed_content(key)

    network, prompts, finder = (
        network_of(workflow),
        content("train::prompts")[0],
        content("joint::find_points"),
    )
    optimizer = content("prompter_stage::optimizer")
    assert (
        network.prompter.options.levels,
        network.prompter.options.step,
        content("prompter_stage::loss").background_weight,
        prompts.max_masks,
        prompts.negatives,
        finder.radius_px,
        finder.mask_filter,
        content("joint::inferer").nms_threshold,
        optimizer.param_groups[0]["lr"],
    ) == RECIPES[dataset]
    assert content("joint::inferer").negatives == prompts.negatives
    assert type(content("optimizer")) is type(optimizer) is torch.optim.AdamW
    assert content("optimizer").defaults["weight_decay"] == optimizer.defaults["weight_decay"] == 1e-4
    averaging = content("prompter_stage::weight_averaging")
    assert (averaging.decay, averaging.copy_epochs, averaging.warm_up) == (0.99, 5, False)
    assert "RandSuperpixelsd" in [type(step).__name__ for step in content("train::augmentation")]
    for stage in ("prompter_stage", "train"):
        assert content(f"{stage}::sampler").epochs == 200


@pytest.mark.parametrize("dataset", RECIPES)
def test_a_recipe_trains_its_augmented_images(dataset: str, small: dict[str, Any], tmp_path: Path) -> None:
    settings = {**small, "epochs": 1, "val_interval": 1, "samples_per_epoch": 1, "prompter_batch_size": 1}
    for stage in ("prompter", "segmentor"):
        PROMPTNUCSEG.train("paper", f"paper_{dataset}", **settings, run_id=stage)
    assert {"prompter.safetensors", "segmentor.safetensors"} <= {path.name for path in tmp_path.iterdir()}
