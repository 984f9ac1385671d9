"""What the configurations of bundles call."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn
from torch.utils.data import TensorDataset

from nucsam_monai import engines
from nucsam_monai.engines.bundle import (
    check_keys,
    current_parser,
    executed_configuration,
    recorded_settings,
    settings_named,
)
from nucsam_monai.utils.errors import ConfigurationError
from tests.bundles.runs import raised_from

CONFIG = {
    "bundle_root": "",
    "epochs": 2,
    "lr": 0.1,
    "rate": "$2 * @lr",
    "unused": "$1 / 0",
    "tracking_uri": "http://user:secret@host",
    "names": ["a", "b"],
    "network": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": "@epochs"},
    "train": {"trainer": {"_target_": "builtins.dict", "network": "@network", "rate": "@rate"}, "note": "x"},
    "run": ["$@train#trainer"],
}


@pytest.fixture
def parser(tmp_path: Path) -> ConfigParser:
    """A configuration as it is in the file of its bundle."""
    (tmp_path / "configs").mkdir()
    config = {**CONFIG, "bundle_root": str(tmp_path)}
    (tmp_path / "configs" / "train.json").write_text(json.dumps(config))
    return ConfigParser(json.loads(json.dumps(config)))


def test_the_own_keys_are_known(parser: ConfigParser) -> None:
    check_keys(parser)
    parser.update({"epochs": 3, "train#note": "y", "network#bias": False})
    check_keys(parser)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("epoch", "epochs"),
        ("train#notes", "train#note"),
        ("train#trainr", "train#trainer"),
        ("network#in_feature", "network#in_features"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_one(parser: ConfigParser, key: str, nearest: str) -> None:
    parser.update({key: 4})
    with pytest.raises(ConfigurationError, match=f"--{key}: not a key.*'{nearest}'"):
        check_keys(parser)


def test_an_option_may_be_a_dictionary(parser: ConfigParser) -> None:
    parser.update({"lr": {"first": 0.1, "second": 0.2}})
    check_keys(parser)


def test_a_workflow_may_be_added(parser: ConfigParser) -> None:
    parser.update({"cost": ["$print(@epochs)"]})
    check_keys(parser)


def test_a_new_key_that_another_one_reads_is_known(parser: ConfigParser) -> None:
    parser.update({"mine": 4, "epochs": "@mine"})
    check_keys(parser)


def test_settings_are_recorded_with_overrides_and_without_secrets(parser: ConfigParser) -> None:
    parser.update({"network#bias": False})
    parser.parse()
    parser.get_parsed_content("train")
    found = recorded_settings(parser)
    assert (found["epochs"], found["rate"], found["names"]) == (2, 0.2, ["a", "b"])
    assert found["network"] == {"in_features": 2, "bias": False}
    assert found["train"]["note"] == "x"
    assert not {"unused", "tracking_uri"} & set(found)
    assert "tracking_uri" not in executed_configuration(parser)
    assert executed_configuration(parser)["network"]["bias"] is False


def test_the_parser_is_found_from_within_a_configuration() -> None:
    assert current_parser() is None
    assert settings_named(["epochs"]) == {}
    config = {
        "imports": ["$import nucsam_monai", "$import nucsam_monai.engines.bundle"],
        "epochs": "$1 + 1",
        "found": "$nucsam_monai.engines.bundle.settings_named(['epochs'])",
    }
    assert ConfigParser(config).get_parsed_content("found") == {"epochs": 2}


def test_a_configuration_is_checked_before_anything_else(parser: ConfigParser) -> None:
    parser.update(
        {
            "imports": ["$import nucsam_monai", "$import nucsam_monai.engines"],
            "initialize": ["$nucsam_monai.engines.set_up(0)"],
            "epoch": 3,
        }
    )
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("initialize")
    assert "'epochs'" in (raised_from(error.value, ConfigurationError) or "")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: engines.pick("distance", components=1, distance=2), 2),
        (lambda: engines.pick("unet", "other", hovernet="own"), "other"),
        (lambda: engines.first_given(None, "", "b"), ""),
        (lambda: engines.first_given(None, None), None),
        (lambda: engines.quality_metric(["a"]), "val_pq"),
        (lambda: engines.quality_metric(["a", "b"]), "val_mpq"),
        (lambda: engines.comparable_classes(["a"], ["a"]), ["a"]),
        (lambda: engines.comparable_classes(["a"], ["b"]), ["nucleus"]),
        (lambda: engines.trained_part("out", "prompter"), "out/prompter.safetensors"),
        (lambda: engines.trained_part("out", "prompter", without=True), None),
        (lambda: engines.trained_part(None, "prompter"), None),
        (lambda: engines.trained_model("out", [False, 1]), "out/model.safetensors"),
        (lambda: engines.trained_model("out", [False, 0]), None),
        (lambda: engines.trains_prompt_encoder("all", None), True),
        (lambda: engines.trains_prompt_encoder("all", "sam.pth"), False),
        (lambda: engines.trains_prompt_encoder("decoder", None), False),
        (lambda: engines.domains_of([{"domain": "b"}, {"domain": "a"}, {"domain": "b"}]), "a+b"),
        (lambda: engines.header_of(None), None),
        (lambda: engines.header_of({"prompter": None}), {"prompter": None}),
    ],
)
def test_choices(call: Any, expected: Any) -> None:
    assert call() == expected


def test_weights_are_loaded_only_if_there_are_some() -> None:
    network = nn.Linear(2, 2)
    engines.start(network, None, {})
    engines.start_classes(None, network, {})
    engines.start_encoder(None, network)
    engines.compile_if(False, [network], torch.device("cpu"))
    network.bias.requires_grad_(False)
    assert engines.trained_parameters(network) == [network.weight]


def test_settings_of_a_dataset_need_their_recipe() -> None:
    engines.require_recipe("paper", "paper.json")
    with pytest.raises(ConfigurationError, match=r"Name paper.json between train.json"):
        engines.require_recipe(None, "paper.json")


def test_loaders_know_how_items_are_joined() -> None:
    data = TensorDataset(torch.zeros(3, 2))
    assert engines.single_loader(data).batch_size == 1
    assert engines.single_loader(data, collate_fn="points").collate_fn is engines.collate_points
    with pytest.raises(ConfigurationError, match="expected one of points, nuclei, end_to_end"):
        engines.single_loader(data, collate_fn="lines")


def test_the_learning_rate_rises_from_a_tenth() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = engines.warmup_cosine(optimizer, 2, 4)
    rates = []
    for _ in range(4):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.1)
    assert rates[2] == pytest.approx(1.0)
    assert rates[3] < 1


def test_the_demo_is_drawn_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("nucsam_monai.engines.bundle.demo_dataset_dir", lambda: drawn.append(1))
    engines.draw_demo("elsewhere")
    assert not drawn
    engines.draw_demo(engines.demo_folder())
    assert drawn
