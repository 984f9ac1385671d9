"""Every switch of eU-Net3+'s ablations is a key of the configuration; the paper's recipe; equal networks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from nucsam_monai.inferers import ResizeInferer, TileInferer
from nucsam_monai.networks import EUNet3P
from nucsam_monai.networks.eunet3p import ConcatFusion
from nucsam_monai.networks.unet3plus import MaxBlurPool
from tests.bundles.eunet3p_runs import EUNET3P
from tests.bundles.runs import network_of

Switch = tuple[dict[str, Any], Callable[[EUNet3P], bool]]

SWITCHES: dict[str, Switch] = {
    "rectified units": (
        {"network_def#unet#activation": "relu"},
        lambda net: net.unet_options.activation == "relu",
    ),
    "no SAM": ({"fusion": "none"}, lambda net: net.image_encoder is None),
    "concatenation": (
        {"fusion": "concat"},
        lambda net: isinstance(net.guidance.fusion, ConcatFusion),
    ),
    "released gate": ({"network_def#xgfb#gate": "released"}, lambda net: net.xgfb_options.gate == "released"),
    "ungated keys": ({"network_def#xgfb#kv": "ungated"}, lambda net: net.xgfb_options.kv == "ungated"),
    "keys from SAM": ({"network_def#xgfb#kv": "sam"}, lambda net: net.xgfb_options.kv == "sam"),
    "residual": ({"network_def#xgfb#residual": True}, lambda net: net.xgfb_options.residual),
    "advanced guidance": ({"advanced": True}, lambda net: len(net.guidance.gates) == 4),
    "max pooling": (
        {"network_def#unet#pool": "max"},
        lambda net: not isinstance(net.unet.pool, MaxBlurPool),
    ),
    "no dropout": ({"dropout": 0.0}, lambda net: net.unet.dropout.p == 0),
    "deep supervision": (
        {"network_def#unet#deep_supervision": True},
        lambda net: len(net.unet.side_heads) == 4,
    ),
    "enlarged for SAM": ({"sam_input_scale": 2}, lambda net: net.sam_options.input_scale == 2),
    "two sigmoids": ({"loss": "sigmoid_focal_dice"}, lambda net: True),
    "new copies all the time": ({"train#copies#copies": None}, lambda net: True),
}


@pytest.fixture
def settings(dataset_dir: str, micro: None, tmp_path: Path) -> dict[str, Any]:
    """One step of a training that a random SAM guides."""
    return {
        **EUNET3P.tiny,
        "dataset_dir": dataset_dir,
        "output_dir": str(tmp_path),
        "fusion": "xgfb",
        "embedding_cache": None,
        "samples_per_epoch": 2,
        "val_interval": 99,
    }


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_trains_a_step(settings: dict[str, Any], switch: str) -> None:
    changed, took_effect = SWITCHES[switch]
    workflow = EUNET3P.bundle(**{**settings, "fit": "resize", **changed})
    network = network_of(workflow)
    before = [parameter.clone() for parameter in network.parameters() if parameter.requires_grad]
    workflow.run()
    assert took_effect(network)
    after = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def content(workflow: ConfigWorkflow, key: str) -> Any:
    return workflow.parser.get_parsed_content(key)


def test_the_losss_key_reaches_the_loss(settings: dict[str, Any]) -> None:
    assert content(EUNET3P.bundle(**settings), "loss_function").mask.softmax
    assert not content(EUNET3P.bundle(**settings, loss="sigmoid_focal_dice"), "loss_function").mask.softmax


def read(name: str) -> dict[str, Any]:
    return json.loads((EUNET3P.configs / name).read_text())


def test_train_and_inference_build_the_same_network() -> None:
    train, inference = read("train.json"), read("inference.json")
    assert train["network_def"] == inference["network_def"]
    shared = {name for name in train if f'"@{name}"' in json.dumps(inference["network_def"])}
    assert len(shared) > 5
    assert {name: train[name] for name in shared} == {name: inference[name] for name in shared}


def test_the_papers_recipe_is_that_of_the_paper(settings: dict[str, Any]) -> None:
    recipe = read("paper.json")
    assert (recipe["sam_variant"], recipe["filters"]) == ("vit_b", [32, 64, 128, 256, 512])
    small = ("device", "sam_variant", "filters", "tracking_uri", "dataset_dir", "output_dir", "image_size")
    chosen = {key: settings[key] for key in small}
    workflow = EUNET3P.bundle("paper", **chosen, precision="fp32", hide_progress=True, embedding_cache=None)
    optimizer, scheduler = content(workflow, "optimizer"), content(workflow, "lr_scheduler")
    assert type(optimizer) is torch.optim.Adam
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(1e-4, 1e-5)]
    assert scheduler.factor == 1
    sampler = content(workflow, "train#sampler")
    assert (sampler.epochs, sampler.batch_size, sampler.samples_per_epoch) == (50, 16, None)
    assert content(workflow, "train#copies").copies == 50
    assert isinstance(content(workflow, "validate#spatial_inferer"), ResizeInferer)
    assert isinstance(content(EUNET3P.bundle(**settings), "validate#spatial_inferer"), TileInferer)
    network = network_of(workflow)
    assert (network.fusion, network.advanced, network.sam_options.input_scale) == ("xgfb", False, 4)
    assert (network.xgfb_options.gate, network.xgfb_options.kv) == ("glu", "gated")
    assert (network.unet_options.activation, network.unet_options.pool) == ("glu", "maxblur")
    names = [type(one).__name__ for one in content(workflow, "train#copies").augmentation.transforms]
    assert names[0] == "Resized"
    assert {"RandFlipd", "RandRotated", "RandZoomd", "Rand2DElasticd", "RandAdjustContrastd"} <= set(names)


def test_the_papers_recipe_trains_and_evaluates(settings: dict[str, Any], tmp_path: Path) -> None:
    small = {key: value for key, value in settings.items() if key not in ("val_interval", "batch_size")}
    EUNET3P.train("paper", **small, batch_size=2)
    weights = tmp_path / "model.safetensors"
    EUNET3P.evaluate("paper", **{**small, "output_dir": str(tmp_path / "out")}, checkpoint=str(weights))
    assert (tmp_path / "out" / "summary.json").is_file()
