"""The bundle of detectors: training, evaluation and inference."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nucsam_monai import load
from nucsam_monai.networks.sam import read_header
from tests.bundles.detectors_runs import DETECTORS
from tests.bundles.promptnucseg_runs import CLASS_NAMES, write_typed_dataset
from tests.bundles.runs import assert_same_tensors, draw

EPOCHS = 2


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_typed_dataset(tmp_path_factory.mktemp("typed")))


@pytest.fixture(scope="module")
def trained(typed: str, micro: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("detectors")
    DETECTORS.train(dataset_dir=typed, output_dir=str(output), epochs=EPOCHS)
    return output / "model.safetensors"


def test_the_weights_know_their_classes_and_settings(trained: Path) -> None:
    header = read_header(trained)
    assert header["method"] == "maskrcnn"
    assert json.loads(header["class_names"]) == list(CLASS_NAMES)
    assert json.loads(header["settings"])["image_size"] == 64


def test_a_resumed_training_ends_with_the_same_weights(trained: Path, typed: str, tmp_path: Path) -> None:
    settings = {"dataset_dir": typed, "output_dir": str(tmp_path), "epochs": EPOCHS}
    DETECTORS.train(**settings, **{"train#trainer#max_epochs": 1})
    DETECTORS.train(**settings, resume=True)
    for name in ("model.safetensors", "training_state.safetensors"):
        assert_same_tensors(trained.with_name(name), tmp_path / name)


def test_every_metric_is_measured(trained: Path, typed: str, tmp_path: Path) -> None:
    DETECTORS.evaluate(dataset_dir=typed, output_dir=str(tmp_path), checkpoint=str(trained), min_score=0.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"pq", "aji", "mpq"} <= set(json.dumps(summary).replace('"', " ").split())


def test_images_of_any_size_are_segmented_with_classes(trained: Path, tmp_path: Path) -> None:
    image, _ = draw(np.random.default_rng(7), 4)
    Image.fromarray(image).save(tmp_path / "image.png")
    found = load("detectors", trained, overlap_px=16, min_score=0.0).segment(tmp_path / "image.png")
    assert found.class_names == CLASS_NAMES
    assert found.instances.shape == image.shape[:2]


@pytest.mark.parametrize(
    ("detector", "encoder"), [("pointnu_net", "hrnet_w18_small"), ("sparse_inst", "test_resnet")]
)
def test_other_detectors_train_and_are_told_by_their_weights(
    detector: str, encoder: str, typed: str, tmp_path: Path
) -> None:
    settings = {"epochs": 1, "samples_per_epoch": 2, "detector": detector, "encoder": encoder}
    DETECTORS.train(dataset_dir=typed, output_dir=str(tmp_path), **settings)
    image, _ = draw(np.random.default_rng(7), 4)
    Image.fromarray(image).save(tmp_path / "image.png")
    found = load("detectors", tmp_path / "model.safetensors", overlap_px=16, min_score=0.0).segment(
        tmp_path / "image.png"
    )
    assert found.class_names == CLASS_NAMES
    assert found.instances.shape == image.shape[:2]
