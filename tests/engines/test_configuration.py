"""The configuration of a bundle while it is read."""

import json
from pathlib import Path

import fire.parser
import pytest
from monai.bundle import ConfigParser

from nucsam_monai.engines.configuration import (
    check_keys,
    current_parser,
    executed_configuration,
    recorded_settings,
    restore_paths,
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


def test_keys_of_other_files_of_the_bundle_are_unknown(parser: ConfigParser) -> None:
    other = Path(parser["bundle_root"]) / "configs" / "inference.json"
    other.write_text(json.dumps({"input": "x", "overlap": 1}))
    parser.update({"overlap": 2})
    with pytest.raises(ConfigurationError, match="--overlap"):
        check_keys(parser)
    parser.update({"input": "y"})
    check_keys(parser)


def test_an_option_may_be_a_dictionary(parser: ConfigParser) -> None:
    parser.update({"lr": {"first": 0.1, "second": 0.2}})
    check_keys(parser)


def test_a_workflow_may_be_added(parser: ConfigParser) -> None:
    parser.update({"cost": ["$print(@epochs)"], "network_cost": {"_target_": "torch.nn.Identity"}})
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
        "imports": ["$import nucsam_monai", "$import nucsam_monai.engines.configuration"],
        "epochs": "$1 + 1",
        "found": "$nucsam_monai.engines.configuration.settings_named(['epochs'])",
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
    "text", ["2024", "1_2", "1e5", "True", "None", "a,b", "plate #1", "x@y%z#", "#", "tab\t'\"#"]
)
def test_paths_of_the_command_line_stay_as_they_were_typed(text: str) -> None:
    as_read = {"input": fire.parser.DefaultParseValue(text), "output_dir": 2024, "epochs": 1e5, "_meta_": {}}
    parser = ConfigParser({**as_read, "copied": "@output_dir", "file": "$@input + '/a'"})
    parser.parse()
    restore_paths(
        ["run", "--input", text, f"--output_dir={text}", "--epochs", "1e5", "--unknown", "2"], parser
    )
    assert parser.get_parsed_content("input") == parser.get_parsed_content("copied") == text
    assert parser.get_parsed_content("file") == f"{text}/a"
    assert parser.get_parsed_content("epochs") == 1e5


def test_expressions_for_paths_stay_expressions() -> None:
    parser = ConfigParser({"epochs": 2, "output_dir": "$'run' + str(@epochs)"})
    parser.parse()
    restore_paths(["--output_dir", "$'run' + str(@epochs)"], parser)
    assert parser.get_parsed_content("output_dir") == "run2"
