"""``docs/add_a_method.md``: a network and a bundle in a folder of their own do all that a method does."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from experiments import Places, read_experiment, run_experiment
from monai.bundle import ConfigWorkflow
from PIL import Image

from nucsam_monai import load
from nucsam_monai.networks.sam import read_header
from tests.bundles.runs import BUNDLES, REPOSITORY, TINY, assert_same_tensors

PAGE = (REPOSITORY / "docs" / "add_a_method.md").read_text(encoding="utf-8")
SMALL = {key: value for key, value in TINY.items() if key != "sam_variant"}


def block(language: str, number: int = 0) -> str:
    """Return one of the code blocks of the page."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bundle that the page makes, where the page's environment variables find it."""
    folder = tmp_path_factory.mktemp("my_methods")
    configs = folder / "bundles" / "tiny" / "configs"
    configs.mkdir(parents=True)
    (folder / "tiny_network.py").write_text(block("python"))
    changed = json.loads(block("json"))
    for file in (BUNDLES / "baselines" / "configs").glob("*.json"):
        config = json.loads(file.read_text().replace("baselines", "tiny"))
        if file.stem in ("train", "inference"):
            config |= changed
        (configs / file.name).write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("NUCSAM_BUNDLES", str(configs.parents[1]))
        yield configs.parent


def run(bundle: Path, names: Sequence[str], **settings: Any) -> None:
    workflow = ConfigWorkflow(
        config_file=[str(bundle / "configs" / f"{name}.json") for name in names],
        workflow_type="infer" if "inference" in names else "train",
        logging_file=False,
        **settings,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


@pytest.fixture(scope="module")
def weights(bundle: Path, dataset_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a training that was resumed."""
    settings = {**SMALL, "dataset_dir": dataset_dir, "channels": 4}
    whole, parts = (str(tmp_path_factory.mktemp(name)) for name in ("whole", "parts"))
    run(bundle, ["train"], **settings | {"epochs": 2, "output_dir": whole})
    run(bundle, ["train"], **settings | {"epochs": 2, "output_dir": parts, "train#trainer#max_epochs": 1})
    run(bundle, ["train"], **settings | {"epochs": 2, "output_dir": parts}, resume=True)
    for name in ("model.safetensors", "training_state.safetensors"):
        assert_same_tensors(Path(whole, name), Path(parts, name))
    return Path(parts, "model.safetensors")


def test_it_trains_and_resumes(weights: Path) -> None:
    header = read_header(weights)
    assert header["method"] == "tiny"
    assert json.loads(header["options"])["channels"] == 4


def test_it_is_evaluated(bundle: Path, weights: Path, dataset_dir: str, tmp_path: Path) -> None:
    settings = {**SMALL, "dataset_dir": dataset_dir, "channels": 4, "checkpoint": str(weights)}
    run(bundle, ["train", "evaluate"], **settings, output_dir=str(tmp_path))
    rows = (tmp_path / "per_image.csv").read_text().splitlines()
    assert len(rows) == 1 + 3  # the test images of both domains


def test_it_segments(bundle: Path, weights: Path, dataset_dir: str, tmp_path: Path) -> None:
    images = Path(dataset_dir) / "bright" / "images"
    run(
        bundle,
        ["inference"],
        input=str(images),
        output_dir=str(tmp_path),
        checkpoint=str(weights),
        channels=4,
        image_size=32,
    )
    image = next(iter(sorted(images.glob("*.png"))))
    found = load("tiny", weights, channels=4, image_size=32).segment(image)
    assert len(json.loads((tmp_path / f"{image.stem}.geojson").read_text())["features"]) == len(found)


def test_it_is_served(bundle: Path, weights: Path, dataset_dir: str, tmp_path: Path) -> None:
    pytest.importorskip("monailabel.interfaces.app")
    from nucsam_monai.apps.monailabel.application import NucleiLabelApp

    studies = tmp_path / "studies"
    studies.mkdir()
    source = next(iter(sorted((Path(dataset_dir) / "bright" / "images").glob("*.png"))))
    Image.open(source).save(studies / "image.png")
    settings = {"tiny": {"checkpoint": str(weights), "channels": 4, "image_size": 32}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
        conf = {"models": "tiny", "settings": str(tmp_path / "settings.json"), "runs_dir": str(tmp_path)}
        app = NucleiLabelApp(str(REPOSITORY / "nucsam_monai" / "apps" / "monailabel"), str(studies), conf)
        answer = app.infer({"model": "tiny", "image": "image", "device": "cpu"})
    Path(answer["file"]).unlink()
    found = load("tiny", weights, channels=4, image_size=32).segment(source)
    assert answer["params"]["nuclei"] == len(found)


def test_it_enters_an_experiment(bundle: Path, dataset_dir: str, tmp_path: Path) -> None:
    def run_here(arguments: Sequence[str], log: Path, lock: int | None) -> int:
        files = json.loads(arguments[6])
        workflow = ConfigWorkflow(config_file=files, run_id=arguments[4], logging_file=False, **SMALL)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        return 0

    (tmp_path / "tiny.yaml").write_text(block("yaml").replace("demo/demo_he", "bright"))
    experiment = read_experiment(tmp_path / "tiny.yaml", "small")
    places = Places(Path(dataset_dir), tmp_path / "weights", tmp_path / "output", None)
    report = run_experiment(experiment, places, run=run_here)
    assert report.complete
    assert 0 <= report.results.value("Three convolutions", "bright", "pq") <= 1
