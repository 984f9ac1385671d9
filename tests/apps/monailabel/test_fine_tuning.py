"""Fine-tuning by a bundle's own training."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nucsam_monai.apps.monailabel.annotated_dataset import AnnotatedImage
from nucsam_monai.apps.monailabel.fine_tuning import (
    FROM_SCRATCH,
    FineTuning,
    fine_tune,
    training_options,
    training_overrides,
    training_recipe,
)
from nucsam_monai.apps.monailabel.image_source import ImageOpener
from nucsam_monai.apps.monailabel.runs import ORIGINAL, BundleRuns
from nucsam_monai.networks import UNSAM
from nucsam_monai.networks.sam import read_header, save_trained, with_settings
from nucsam_monai.utils.errors import DatasetError
from nucsam_monai.utils.files import sha256_of_file
from nucsam_monai.utils.paths import bundle_root
from tests.apps.monailabel.test_annotated_dataset import annotated
from tests.tiny_bundles import Weights

WANTED = FineTuning(
    epochs=1, learning_rate=0.01, validation_share=0.3, start=ORIGINAL, domain=None, serve=True
)


def runs_of(weights: Weights, folder: Path) -> BundleRuns:
    return BundleRuns(folder / "runs" / weights.bundle, weights.path, weights.path.suffix == ".safetensors")


def some_annotations(folder: Path) -> list[AnnotatedImage]:
    return [annotated(folder, number, suffix)[0] for number, suffix in enumerate([".png", ".xml", ".png"])]


@pytest.mark.parametrize("name", ["unsam", "promptnucseg"])
def test_new_weights_go_to_a_new_run_and_are_served(
    name: str, weights: dict[str, Weights], tmp_path: Path
) -> None:
    own = weights[name]
    runs, served = runs_of(own, tmp_path), own.segmenter()
    folder = own.path if own.path.is_dir() else own.path.parent
    shipped = {file: sha256_of_file(file) for file in folder.glob("*.safetensors")}
    facts = fine_tune(
        served, runs, some_annotations(tmp_path), ImageOpener(10**6), WANTED, tracking_uri="off"
    )
    run = runs.folder / facts["run"]
    assert facts["images"] == {"training": 2, "validation": 1}
    assert runs.served() == facts["run"]
    assert {file.name for file in run.iterdir()} == {*facts["weights_sha256"], "run.json"}
    assert json.loads((run / "run.json").read_text())["weights_sha256"] == facts["weights_sha256"]
    assert {file: sha256_of_file(file) for file in shipped} == shipped
    assert not set(facts["weights_sha256"].values()) & set(shipped.values())
    for file in shipped:
        assert read_header(file)["method"] == read_header(run / file.name)["method"]
    again = Weights(name, runs.weights(facts["run"]), own.settings).segmenter()
    assert (again.class_names, again.domains) == (served.class_names, served.domains)
    assert again.network is not None


def test_training_gets_what_the_weights_were_made_with(weights: dict[str, Weights], tmp_path: Path) -> None:
    own = weights["unsam"].segmenter()
    overrides = training_overrides(own, WANTED, tmp_path, "nuclei", "sqlite:///runs.db")
    assert overrides["sam_variant"] == "micro"
    assert overrides["checkpoint"] == str(weights["unsam"].path)
    assert overrides["tracking_uri"] == "sqlite:///runs.db"
    assert (overrides["domains"], overrides["network_def#domains"]) == (["nuclei"], ["nuclei"])
    scratch = training_overrides(own, replace(WANTED, start=FROM_SCRATCH), tmp_path, "nuclei", None)
    assert not {"checkpoint", "tracking_uri"} & scratch.keys()


@pytest.mark.slow
def test_weights_with_a_distance_map_are_trained_by_the_recipe_they_come_from(tmp_path: Path) -> None:
    options = {"encoder": {"trainable": "all", "common_ratio": 0.25}, "spgen": {"channels": 32}}
    network = UNSAM("hybrid", ["nuclei"], 64, **options, decoder={"queries_per_domain": 2})
    header = with_settings(network.header, {"instances": "distance", "pixel_std": "image"})
    save_trained(tmp_path / "model.safetensors", network, header)
    own = Weights("unsam", tmp_path / "model.safetensors", {"image_size": 64, "precision": "fp32"})
    segmenter, runs = own.segmenter(), runs_of(own, tmp_path)
    assert [Path(name).name for name in training_recipe(segmenter)] == ["train.json", "compact.json"]
    annotations = some_annotations(tmp_path)
    facts = fine_tune(segmenter, runs, annotations, ImageOpener(10**6), WANTED, tracking_uri="off")
    written = read_header(runs.weights(facts["run"]))
    assert {key: written[key] for key in network.header} == network.header
    assert json.loads(written["settings"])["instances"] == "distance"


@pytest.mark.slow
def test_weights_for_clicks_that_ship_are_fine_tuned(tmp_path: Path) -> None:
    shipped = Path(bundle_root("promptnucseg"), "models", "compact.safetensors")
    own = Weights("promptnucseg", shipped, {"image_size": 64, "precision": "fp32"})
    segmenter, runs = own.segmenter(), runs_of(own, tmp_path)
    assert [Path(name).stem for name in training_recipe(segmenter)] == ["train", "shared_encoder", "compact"]
    annotations = some_annotations(tmp_path)
    facts = fine_tune(segmenter, runs, annotations, ImageOpener(10**6), WANTED, tracking_uri="off")
    written, before = read_header(runs.weights(facts["run"])), read_header(shipped)
    assert json.loads(written["settings"]).items() >= {"image_size": 64, "backbone": "shared"}.items()
    assert written["method"] == before["method"]
    assert Weights("promptnucseg", runs.weights(facts["run"]), own.settings).segmenter().network is not None


def test_annotations_that_cannot_be_used_leave_nothing(weights: dict[str, Weights], tmp_path: Path) -> None:
    own = weights["unsam"]
    runs = runs_of(own, tmp_path)
    with pytest.raises(DatasetError, match="at least 2"):
        fine_tune(own.segmenter(), runs, some_annotations(tmp_path)[:1], ImageOpener(10**6), WANTED)
    assert list(runs.folder.iterdir()) == []


def test_options_of_training(weights: dict[str, Weights], tmp_path: Path) -> None:
    options = training_options(runs_of(weights["unsam"], tmp_path), ("he", "ihc"), ("cpu",))
    assert {one.name: one.shown for one in options} == {
        "device": ["cpu"],
        "max_epochs": 10,
        "lr": 0,
        "val_split": 0.2,
        "start": [ORIGINAL, "scratch"],
        "serve": False,
        "domain": ["he", "ihc"],
    }
