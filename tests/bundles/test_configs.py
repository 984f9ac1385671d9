"""The files of every bundle: metadata, expressions and keys."""

import ast
import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.bundle.properties import InferProperties, TrainProperties

from tests.bundles.runs import BUNDLES, TINY

SCHEMA = Path(__file__).with_name("meta_schema.json")
CONFIG_FILES = sorted(path for path in BUNDLES.glob("*/configs/*.json") if path.name != "metadata.json")
NAMES = sorted(path.name for path in BUNDLES.iterdir() if path.is_dir())
MODULES = {"torch", "monai", "nucsam_monai", "os", "logging", "dist"}
BUILTINS = {"str", "int", "float", "sorted", "len"}
WITHOUT_SAM = {"baselines", "detectors"}
# of lines, which are options, keys that MONAI requires and references as well; and of whole components
MOST_SHARED = {"train.json": (0.8, 0.5), "inference.json": (0.8, 0.85), "evaluate.json": (0.85, 0.1)}
REFERENCE = re.compile(r"@[A-Za-z_][\w#:]*")


# The metadata describe the network of the weights that come with a bundle, where it has some.
OF_SHIPPED_WEIGHTS = {"unsam": {"network_def#decoder#queries_per_domain": 2}}

every_bundle = pytest.mark.parametrize("bundle", NAMES)
PROMPTED = ("promptnucseg", "cfrsam")
SEGMENTING = [name for name in NAMES if (BUNDLES / name / "configs" / "inference.json").exists()]
every_segmenting_bundle = pytest.mark.parametrize("bundle", SEGMENTING)
# untrained prompters prompt hundreds of masks, by the same network in both files; a detector gives lists, which MONAI's
# check does not know
ONE_TENSOR = [name for name in SEGMENTING if name != "detectors"]
every_network = pytest.mark.parametrize(
    ("bundle", "name"),
    [
        *((bundle, "inference.json") for bundle in ONE_TENSOR),
        *(
            pytest.param(bundle, "train.json", marks=[pytest.mark.slow] if bundle in PROMPTED else [])
            for bundle in ONE_TENSOR
        ),
    ],
)


def configs(bundle: str) -> Path:
    return BUNDLES / bundle / "configs"


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


def expressions(file: Path) -> list[str]:
    return [text[1:] for text in texts(read(file)) if text.startswith("$")]


@pytest.mark.parametrize("file", CONFIG_FILES, ids=lambda file: f"{file.parents[1].name}/{file.stem}")
def test_expressions_are_short_and_harmless(file: Path) -> None:
    imports = read(file).get("imports", []) + read(file).get("+imports", [])
    for text in imports:
        assert re.fullmatch(r"\$import [a-z_.]+( as dist)?", text)
    for text in expressions(file):
        assert len(text) <= 130, text
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


def content_lines(file: Path) -> list[str]:
    return [line.strip().rstrip(",") for line in file.read_text().splitlines() if re.search(r"\w", line)]


def components(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and "_target_" in value:
        yield json.dumps(value, sort_keys=True)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from components(item)


def largest_share(parts: dict[str, list[str]]) -> tuple[float, tuple[str, str]]:
    """Return which two bundles have the largest share, of the one with fewer parts, in common."""
    shares = {}
    for pair in combinations(sorted(parts), 2):
        fewer, more = sorted((parts[name] for name in pair), key=len)
        shares[pair] = sum(part in set(more) for part in fewer) / len(fewer)
    return max((share, pair) for pair, share in shares.items())


@pytest.mark.parametrize("name", MOST_SHARED)
def test_bundles_share_names_and_not_copied_components(name: str) -> None:
    of_lines, of_components = MOST_SHARED[name]
    files = {path.parents[1].name: path for path in CONFIG_FILES if path.name == name}
    share, pair = largest_share({bundle: content_lines(file) for bundle, file in files.items()})
    assert share <= of_lines, f"{name} of {pair}"
    share, pair = largest_share({bundle: list(components(read(file))) for bundle, file in files.items()})
    assert share <= of_components, f"{name} of {pair}"


@every_bundle
def test_the_keys_of_the_command_line_exist(bundle: str) -> None:
    train = read(configs(bundle) / "train.json")
    keys = {"dataset_dir", "output_dir", "epochs", "checkpoint", "precision", "tracking_uri", "seed"}
    keys |= {"bundle_root", "device", "val_interval", "lr", *TINY, "sam_variant", "sam_checkpoint"}
    if bundle in WITHOUT_SAM:
        keys -= {"sam_variant", "sam_checkpoint"}
    assert keys <= set(train)


@every_segmenting_bundle
def test_the_keys_of_inference_exist(bundle: str) -> None:
    inference = read(configs(bundle) / "inference.json")
    assert {"checkpoint", "input", "output_dir", "precision", "compile", "run"} <= set(inference)


@every_bundle
def test_every_workflow_has_its_own_run_id_next_to_monais(bundle: str) -> None:
    assert read(configs(bundle) / "train.json")["run"] == "%training"
    assert read(configs(bundle) / "evaluate.json")["run"] == "%evaluating"


@every_segmenting_bundle
@pytest.mark.parametrize(
    ("name", "properties"), [("train.json", TrainProperties), ("inference.json", InferProperties)]
)
def test_every_required_property_has_its_place(bundle: str, name: str, properties: dict[str, Any]) -> None:
    parser = ConfigParser(read(configs(bundle) / name))
    required = [entry["id"] for entry in properties.values() if entry["required"]]
    assert required
    assert [key for key in required if key not in parser] == []


@every_bundle
def test_metadata_follows_monais_schema(bundle: str, tmp_path: Path) -> None:
    # MONAI takes a schema that is there already instead of fetching it
    verify_metadata(meta_file=str(configs(bundle) / "metadata.json"), filepath=str(SCHEMA))
    metadata = read(configs(bundle) / "metadata.json")
    assert metadata["version"] in metadata["changelog"]
    del metadata["network_data_format"]["inputs"]["image"]["num_channels"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA))


@every_network
def test_the_network_takes_and_gives_what_the_metadata_says(bundle: str, name: str) -> None:
    verify_net_in_out(
        "network_def",
        meta_file=str(configs(bundle) / "metadata.json"),
        config_file=str(configs(bundle) / name),
        device="cpu",
        domains=["nuclei"],
        class_names=["nucleus"],  # else those of the demo data, which may not be drawn yet
        **OF_SHIPPED_WEIGHTS.get(bundle, {}),
    )
