"""The UN-SAM bundle's files: metadata, expressions, keys, and the paper's recipe."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.bundle.properties import InferProperties, TrainProperties

from nucsam_monai.inferers import ResizeInferer
from tests.bundles.conftest import Training
from tests.bundles.unsam_runs import CONFIGS, TINY, bundle, network_of

SCHEMA = Path(__file__).with_name("meta_schema.json")
CONFIG_FILES = sorted(path.name for path in CONFIGS.glob("*.json") if path.name != "metadata.json")
MODULES = {"torch", "monai", "nucsam_monai", "os", "logging", "dist"}
BUILTINS = {"str", "int", "float", "sorted"}
REFERENCE = re.compile(r"@[A-Za-z_][\w#:]*")


def read(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / name).read_text())


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


def expressions(name: str) -> list[str]:
    return [text[1:] for text in texts(read(name)) if text.startswith("$")]


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_expressions_are_short_and_harmless(name: str) -> None:
    imports = read(name).get("imports", []) + read(name).get("+imports", [])
    for text in imports:
        assert re.fullmatch(r"\$import [a-z_.]+( as dist)?", text)
    for text in expressions(name):
        assert len(text) < 130, text
        if "$" + text in imports:
            continue
        tree = ast.parse(REFERENCE.sub("reference", text), mode="eval")
        bound = {
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        for node in ast.walk(tree):
            assert not isinstance(node, (ast.Lambda, ast.NamedExpr, ast.Await)), text
            if isinstance(node, ast.Name):
                assert node.id in MODULES | BUILTINS | bound | {"reference"}, text
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_"), text
        assert "__" not in text


def test_the_keys_of_the_command_line_exist() -> None:
    keys = {"dataset_dir", "output_dir", "epochs", "sam_variant", "sam_checkpoint", "checkpoint", "precision"}
    assert keys | {"tracking_uri", "seed", "bundle_root", "device", "val_interval", "lr"} <= set(
        read("train.json")
    )
    assert {"checkpoint", "input", "output_dir", "domain", "unseen_domain", "run"} <= set(
        read("inference.json")
    )


def test_every_workflow_has_its_own_run_id_beside_monais() -> None:
    assert read("train.json")["run"] == "%training"
    assert read("evaluate.json")["run"] == "%evaluating"


@pytest.mark.parametrize(
    ("name", "properties"), [("train.json", TrainProperties), ("inference.json", InferProperties)]
)
def test_every_required_property_has_its_place(name: str, properties: dict[str, Any]) -> None:
    parser = ConfigParser(read(name))
    required = [entry["id"] for entry in properties.values() if entry["required"]]
    assert required
    assert [key for key in required if key not in parser] == []


def test_metadata_follows_monais_schema(tmp_path: Path) -> None:
    # MONAI takes a schema that is there already instead of fetching it
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(SCHEMA))
    metadata = read("metadata.json")
    assert metadata["version"] in metadata["changelog"]
    del metadata["network_data_format"]["inputs"]["image"]["num_channels"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA))


@pytest.mark.parametrize("name", ["train.json", "inference.json"])
def test_the_network_takes_and_gives_what_the_metadata_says(name: str) -> None:
    verify_net_in_out(
        "network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / name),
        device="cpu",
        domains=["nuclei"],
    )


def test_train_and_inference_build_the_same_network() -> None:
    assert read("train.json")["network_def"] == read("inference.json")["network_def"]


@pytest.fixture
def paper(training: Training, tmp_path: Path) -> dict[str, Any]:
    """What turns the paper's recipe into seconds: a micro network, small images and our domains."""
    small = (
        "device",
        "sam_variant",
        "image_size",
        "precision",
        "hide_progress",
        "tracking_uri",
        "dataset_dir",
    )
    chosen = {key: training.settings[key] for key in small}
    return {**chosen, "domains": ["dark", "bright"], "output_dir": str(tmp_path)}


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


def test_tiny_settings_name_keys_that_exist() -> None:
    assert set(TINY) <= set(read("train.json"))
