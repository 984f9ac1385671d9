"""What holds for the trainings of every bundle."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nucsam_monai.networks.sam import read_header
from nucsam_monai.utils.errors import ConfigurationError
from tests.bundles.baselines_runs import BASELINES
from tests.bundles.cfrsam_runs import CFRSAM
from tests.bundles.compact_sam_runs import COMPACT_SAM
from tests.bundles.detectors_runs import DETECTORS
from tests.bundles.eunet3p_runs import EUNET3P
from tests.bundles.promptnucseg_runs import PROMPTNUCSEG, write_typed_dataset
from tests.bundles.runs import BUNDLES, BundleRuns, raised_from
from tests.bundles.sac_runs import SAC
from tests.bundles.unsam_runs import UNSAM

RUNS = {
    one.name: one for one in (UNSAM, SAC, BASELINES, DETECTORS, COMPACT_SAM, EUNET3P, PROMPTNUCSEG, CFRSAM)
}
TWO_STAGES = ("promptnucseg", "cfrsam")
every_bundle = pytest.mark.parametrize("name", RUNS)


def settings_of(runs: BundleRuns, dataset_dir: str, folder: Path) -> dict[str, Any]:
    typed = runs.name in TWO_STAGES
    data = str(write_typed_dataset(folder / "data")) if typed else dataset_dir
    return {**runs.tiny, "dataset_dir": data, "output_dir": str(folder / "out")}


def test_every_bundle_is_tested() -> None:
    assert set(RUNS) == {path.name for path in BUNDLES.iterdir() if path.is_dir()}


@every_bundle
@pytest.mark.parametrize(("epochs", "interval"), [(1, 5), (3, 2)])
def test_the_last_epoch_is_validated_and_saved(
    name: str,
    epochs: int,
    interval: int,
    dataset_dir: str,
    micro: None,
    micro_wide: None,
    thin_generator: None,
    tmp_path: Path,
) -> None:
    runs = RUNS[name]
    settings = settings_of(runs, dataset_dir, tmp_path)
    settings |= {"epochs": epochs, "val_interval": interval, "samples_per_epoch": 1}
    stage = {"run_id": "prompter"} if name in TWO_STAGES else {}
    workflow = runs.bundle(**settings, **stage)
    key = "prompter_stage" if name in TWO_STAGES else "train"
    evaluator = workflow.parser.get_parsed_content(
        "prompter_stage::validation::evaluator" if name in TWO_STAGES else "validate::evaluator"
    )
    validated: list[int] = []
    evaluator.add_event_handler("COMPLETED", lambda engine: validated.append(engine.state.epoch))
    workflow.run()
    assert workflow.parser.get_parsed_content(f"{key}::trainer").state.epoch == epochs
    assert validated == sorted({*range(interval, epochs + 1, interval), epochs})
    weights = "prompter" if name in TWO_STAGES else "model"
    assert int(read_header(tmp_path / "out" / f"{weights}.safetensors")["epoch"]) <= epochs


@pytest.mark.parametrize("name", ["compact_sam", *TWO_STAGES])
def test_without_nuclei_in_the_validation_the_last_weights_are_saved(
    name: str, dataset_dir: str, micro: None, micro_wide: None, tmp_path: Path
) -> None:
    runs = RUNS[name]
    settings = settings_of(runs, dataset_dir, tmp_path)
    data = Path(shutil.copytree(settings["dataset_dir"], tmp_path / "copy"))
    for file in data.glob("**/instances/validation*.png"):
        Image.fromarray(np.zeros_like(Image.open(file))).save(file)
    runs.train(**{**settings, "dataset_dir": str(data), "epochs": 2, "samples_per_epoch": 1})
    stages = ("prompter", "segmentor") if name in TWO_STAGES else ("model",)
    for stage in stages:
        assert read_header(tmp_path / "out" / f"{stage}.safetensors")["epoch"] in ("1", "2")


@every_bundle
@pytest.mark.parametrize(
    ("key", "nearest"),
    [("sample_per_epoch", "samples_per_epoch"), ("train#augmentatoin", "train#augmentation")],
)
def test_a_misspelt_option_stops_the_workflow(
    name: str, key: str, nearest: str, dataset_dir: str, tmp_path: Path
) -> None:
    runs = RUNS[name]
    if name in ("sam_eunet3p",) and key.startswith("train"):
        nearest = "train#augmentation"
    with pytest.raises(RuntimeError) as error:
        runs.bundle(**{**runs.tiny, "output_dir": str(tmp_path), "dataset_dir": dataset_dir, key: 4})
    message = raised_from(error.value, ConfigurationError) or ""
    assert f"--{key}" in message
    assert f"Did you mean '{nearest}'?" in message


@pytest.mark.parametrize("name", [name for name in RUNS if (RUNS[name].configs / "inference.json").exists()])
@pytest.mark.parametrize("key", ["precison", "epochs"])
def test_an_option_of_the_training_or_a_misspelt_one_stops_the_inference(
    name: str, key: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError) as error:
        RUNS[name].bundle(base="inference", output_dir=str(tmp_path), **{key: 4})
    assert f"--{key}: not a key" in (raised_from(error.value, ConfigurationError) or "")


@pytest.mark.parametrize(
    "file",
    sorted(path for path in BUNDLES.glob("*/configs/*.json") if path.name != "metadata.json"),
    ids=lambda file: f"{file.parents[1].name}/{file.stem}",
)
def test_expressions_only_call_things(file: Path) -> None:
    for line in file.read_text().splitlines():
        text = json.dumps(line)
        if "$" in text:
            assert not {"if", "else", "and", "or", "not", "lambda"} & set(text.split()), line


@pytest.mark.parametrize("name", TWO_STAGES)
def test_the_settings_of_a_dataset_are_refused_without_their_recipe(
    name: str, micro: None, micro_wide: None, tmp_path: Path
) -> None:
    runs = RUNS[name]
    settings = settings_of(runs, "", tmp_path)
    with pytest.raises(RuntimeError) as error:
        runs.bundle("paper_pannuke", **settings)
    assert "Name paper.json" in (raised_from(error.value, ConfigurationError) or "")


LINES = {"sam_eunet3p": 260, "promptnucseg": 480, "cfrsam": 480}


@every_bundle
def test_a_training_fits_on_a_few_pages(name: str) -> None:
    lines = (RUNS[name].configs / "train.json").read_text().splitlines()
    assert len(lines) <= LINES.get(name, 220)
    recipes = [file for runs in RUNS.values() for file in runs.configs.glob("paper*.json")]
    assert sum(len(file.read_text().splitlines()) for file in recipes) <= 700
