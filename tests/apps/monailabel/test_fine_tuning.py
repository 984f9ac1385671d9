"""From saved annotations to a dataset folder, and training on it by a bundle's own recipe."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nucsam_monai.apps.monailabel.annotations import AnnotationFacts, write_annotations
from nucsam_monai.apps.monailabel.fine_tuning import (
    FROM_SCRATCH,
    AnnotatedImage,
    FineTuning,
    fine_tune,
    read_annotation,
    training_options,
    training_overrides,
    training_recipe,
    write_annotated_dataset,
)
from nucsam_monai.apps.monailabel.images import ImageOpener, write_label
from nucsam_monai.apps.monailabel.model import ORIGINAL, BundleRuns
from nucsam_monai.data import load_items, read_dataset
from nucsam_monai.data.label_files import read_instances
from nucsam_monai.networks import UNSAM
from nucsam_monai.networks.sam import read_header, save_trained, with_settings
from nucsam_monai.utils.errors import DatasetError
from nucsam_monai.utils.files import sha256_of_file
from nucsam_monai.utils.nucleus import nuclei_of_prediction
from nucsam_monai.utils.paths import bundle_root
from tests.apps.monailabel.analytic import dark_nuclei, discs
from tests.tiny_bundles import Weights

OPENER = ImageOpener(10**6)


def annotated(folder: Path, number: int, suffix: str) -> tuple[AnnotatedImage, np.ndarray]:
    image = discs(40, 60, [(10 + number, 12), (40, 25 + number)], 6)
    truth = dark_nuclei(image)
    one = AnnotatedImage(f"slide.{number}", folder / f"{number}.png", folder / f"{number}_label{suffix}")
    Image.fromarray(image).save(one.image)
    if suffix == ".xml":
        facts = AnnotationFacts("unsam", ("nucleus",), (0, 0), (60, 40))
        write_annotations(one.label, "asap", nuclei_of_prediction(truth), facts)
    else:
        write_label(one.label, truth.instances)
    return one, truth.instances


def test_label_images_and_outlines_become_a_dataset(tmp_path: Path) -> None:
    made = [
        annotated(tmp_path, number, suffix) for number, suffix in enumerate([".png", ".xml", ".nrrd", ".tif"])
    ]
    counts = write_annotated_dataset(tmp_path / "data", [one for one, _ in made], OPENER, domain="he")
    assert counts == {"training": 3, "validation": 1}
    items = load_items(tmp_path / "data", ["training", "validation"])
    truths = {one.id: truth for one, truth in made}
    assert {item["group"] for item in items} == truths.keys()
    for item in items:
        assert (read_instances(item["instances"]) == truths[item["group"]]).all()
        assert item["domain"] == "he"


def test_the_split_does_not_change_as_images_join(tmp_path: Path) -> None:
    made = [annotated(tmp_path, number, ".png")[0] for number in range(6)]
    held_out = []
    for count in (5, 6):
        write_annotated_dataset(
            tmp_path / str(count), made[:count], OPENER, domain="he", validation_share=0.4
        )
        held_out.append({item["group"] for item in load_items(tmp_path / str(count), "validation")})
    assert len(held_out[0] & held_out[1]) >= 1


def outline(name: str, corners: list[list[float]]) -> dict:
    return {"type": "polyline", "group": name, "points": [[*corner, 0] for corner in corners]}


def test_classes_come_from_the_names_of_outlines(tmp_path: Path) -> None:
    Image.fromarray(discs(20, 20, [], 1)).save(tmp_path / "a.png")
    elements = [
        outline("Lymphocyte", [[1, 1], [6, 1], [6, 5], [1, 5]]),
        outline("tumour", [[10, 10], [14, 10], [14, 14], [10, 14]]),
        outline("tumour", [[30, 30], [34, 30], [34, 34]]),
    ]
    (tmp_path / "a.json").write_text(json.dumps({"elements": elements}))
    one = AnnotatedImage("a", tmp_path / "a.png", tmp_path / "a.json")
    annotation = read_annotation(one, OPENER, ("tumour", "lymphocyte"))
    assert annotation.classes == {1: 1, 2: 0}
    assert (annotation.instances[1:5, 1:6] == 1).all()
    assert (annotation.instances == 2).sum() == 16
    with pytest.raises(DatasetError, match="Lymphocyte"):
        read_annotation(one, OPENER, ("tumour", "stroma"))


def test_holes_stay_empty(tmp_path: Path) -> None:
    Image.fromarray(discs(20, 20, [], 1)).save(tmp_path / "a.png")
    rings = [[[2, 2], [12, 2], [12, 12], [2, 12], [2, 2]], [[5, 5], [8, 5], [8, 8], [5, 8], [5, 5]]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}}
    (tmp_path / "a.geojson").write_text(json.dumps(feature))
    one = AnnotatedImage("a", tmp_path / "a.png", tmp_path / "a.geojson")
    instances = read_annotation(one, OPENER, ("nucleus",)).instances
    assert (instances > 0).sum() == 100 - 9
    assert not instances[5:8, 5:8].any()


def test_what_cannot_be_trained_on(tmp_path: Path) -> None:
    one, _ = annotated(tmp_path, 0, ".png")
    with pytest.raises(DatasetError, match="at least 2"):
        write_annotated_dataset(tmp_path / "data", [one], OPENER, domain="he")
    with pytest.raises(DatasetError, match="has no classes"):
        read_annotation(one, OPENER, ("a", "b"))
    write_label(one.label, np.zeros((40, 61), dtype=np.int32))
    with pytest.raises(DatasetError, match="61 x 40"):
        read_annotation(one, OPENER, ("nucleus",))
    assert not (tmp_path / "data").exists()


def test_metadata_names_classes(tmp_path: Path) -> None:
    Image.fromarray(discs(20, 20, [], 1)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"elements": [outline("b", [[1, 1], [6, 1], [6, 5]])]}))
    images = [AnnotatedImage(name, tmp_path / "a.png", tmp_path / "a.json") for name in "xy"]
    write_annotated_dataset(tmp_path / "data", images, OPENER, domain="d", class_names=("a", "b"))
    assert read_dataset(tmp_path / "data").metadata.class_names == ("a", "b")


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
    assert (overrides["fit"], overrides["image_size"]) == ("tile", 32)
    assert overrides["checkpoint"] == str(weights["unsam"].path)
    assert overrides["tracking_uri"] == "sqlite:///runs.db"
    assert (overrides["domains"], overrides["network_domains"]) == (["nuclei"], ["nuclei"])
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
