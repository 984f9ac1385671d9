"""From saved annotations to a dataset folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nucsam_monai.apps.monailabel.annotated_dataset import (
    AnnotatedImage,
    read_annotation,
    write_annotated_dataset,
)
from nucsam_monai.apps.monailabel.annotations import AnnotationFacts, write_annotations
from nucsam_monai.apps.monailabel.image_source import ImageOpener
from nucsam_monai.apps.monailabel.label_files import write_label
from nucsam_monai.data import load_items, read_dataset
from nucsam_monai.data.label_files import read_instances
from nucsam_monai.utils.errors import DatasetError
from nucsam_monai.utils.nucleus import nuclei_of_prediction
from tests.apps.monailabel.analytic import dark_nuclei, discs

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
    with pytest.raises(DatasetError, match="tells no classes"):
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
