import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import ExifTags, Image

from nucsam_monai.data.converters import folder
from nucsam_monai.data.converters.polygons import geojson_outlines, paint_polygons
from nucsam_monai.data.dataset import read_dataset
from nucsam_monai.data.label_files import read_classes, read_image, read_instances
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.io import write_geojson
from nucsam_monai.utils.errors import ConfigurationError, DatasetError, ImageReadError
from nucsam_monai.utils.prediction import prediction_from_instances
from tests.data.originals import noise


def label_map() -> np.ndarray:
    labels = np.zeros((8, 10), np.int32)
    labels[1:3, 1:3], labels[4:7, 4:7] = 40, 7
    return labels


def class_map(first: int = 5, second: int = 2) -> np.ndarray:
    """The class of nucleus 7 is ``first``, that of 40 is ``second`` in three of its four pixels."""
    values = np.zeros((8, 10), np.uint8)
    values[1:3, 1:3], values[4:7, 4:7] = second, first
    values[1, 1] = first
    return values


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(10):
        Image.fromarray(noise(8, 10, seed=number)).save(tmp_path / "images" / f"P{number // 2}_{number}.png")
    return tmp_path / "images"


def write_maps(target: Path, images: Path, suffix: str, labels: np.ndarray, mark: str = "") -> Path:
    target.mkdir()
    for image in images.iterdir():
        path = target / f"{image.stem}{mark}{suffix}"
        match suffix:
            case ".npy":
                np.save(path, labels)
            case ".mat":
                scipy.io.savemat(path, {"inst_map": labels.astype(float)})
            case ".tif":
                tifffile.imwrite(path, labels.astype(np.int32))
            case ".png":
                Image.fromarray(labels.astype(np.uint16)).save(path)
    return target


@pytest.mark.parametrize("suffix", [".npy", ".mat", ".tif", ".png"])
def test_every_kind_of_label_map(tmp_path: Path, images: Path, suffix: str) -> None:
    instances = write_maps(tmp_path / "instances", images, suffix, label_map())
    summary = folder.convert(images, instances, tmp_path / "mine", magnification=40, mpp=0.25)
    assert {split: count.images for split, count in summary.splits.items()} == {
        "training": 8,
        "validation": 1,
        "test": 1,
    }
    assert validate_dataset(tmp_path / "mine").splits == summary.splits
    dataset = read_dataset(tmp_path / "mine")
    assert (dataset.metadata.name, dataset.metadata.magnification, dataset.metadata.mpp) == ("mine", 40, 0.25)
    assert (dataset.metadata.class_names, dataset.metadata.protocol) == (("nucleus",), "random")
    found = read_instances(dataset.splits["test"][0]["instances"])
    assert np.array_equal(found, np.select([label_map() == 7, label_map() == 40], [1, 2]))


@pytest.mark.parametrize("shared", [True, False])
def test_label_maps_as_cellpose_names_them(tmp_path: Path, images: Path, shared: bool) -> None:
    if shared:
        for image in list(images.iterdir()):
            Image.fromarray(label_map().astype(np.uint16)).save(images / f"{image.stem}_cp_masks.png")
    instances = images if shared else write_maps(tmp_path / "masks", images, ".png", label_map(), "_cp_masks")
    summary = folder.convert(images, instances, tmp_path / "mine")
    assert sum(count.images for count in summary.splits.values()) == 10
    assert sum(count.nuclei for count in summary.splits.values()) == 20


def test_images_and_labels_that_names_do_not_tell_apart(tmp_path: Path, images: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"holds images and label maps.*--instances_suffix"):
        folder.convert(images, images, tmp_path / "mine")


def test_outlines_of_qupath(tmp_path: Path, images: Path) -> None:
    labels = label_map()
    labels[5, 5] = 0  # a hole
    labels[0, 9] = 40  # a second part
    outlines = tmp_path / "outlines"
    outlines.mkdir()
    for image in images.iterdir():
        write_geojson(outlines / f"{image.stem}.geojson", prediction_from_instances(labels), name="x")
    folder.convert(images, outlines, tmp_path / "mine")
    found = read_instances(read_dataset(tmp_path / "mine").splits["test"][0]["instances"])
    assert np.array_equal(found, np.select([labels == 7, labels == 40], [1, 2]))
    cell = {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [10, 8], [0, 8]]]}
    nucleus = {"type": "Polygon", "coordinates": [[[1, 1], [3, 1], [3, 4], [1, 4], [1, 1]]]}
    features = [
        {"geometry": cell, "properties": {"objectType": "annotation"}},
        {"geometry": cell, "nucleusGeometry": nucleus, "properties": {"objectType": "cell"}},
    ]
    (outlines / "a.geojson").write_text(json.dumps(features))
    painted = paint_polygons(geojson_outlines(outlines / "a.geojson"), (8, 10))
    assert painted.sum() == painted[1:4, 1:3].sum() == 6
    (outlines / "a.geojson").write_text(
        '{"features": [{"geometry": {"type": "Point", "coordinates": [1, 2]}}]}'
    )
    with pytest.raises(DatasetError, match=r"a\.geojson: expected a GeoJSON.*found a Point"):
        geojson_outlines(outlines / "a.geojson")


def test_all_wrong_pairs_are_named(tmp_path: Path, images: Path) -> None:
    instances = write_maps(tmp_path / "instances", images, ".npy", label_map())
    np.save(instances / "P0_0.npy", label_map()[1:])
    (instances / "P1_2.npy").write_bytes(b"x")
    background = label_map()
    background[background == 0] = 255
    np.save(instances / "P3_6.npy", background)
    with pytest.raises(DatasetError, match=r"3 samples(.|\n)*P0_0(.|\n)*P1_2(.|\n)*P3_6.*255 covers 8\d %"):
        folder.convert(images, instances, tmp_path / "mine", workers=2)


def test_classes_from_maps(tmp_path: Path, images: Path) -> None:
    instances = write_maps(tmp_path / "instances", images, ".npy", label_map(), "_mask")
    classes = write_maps(tmp_path / "classes", images, ".png", class_map(), "_type")
    options = {"instances_suffix": "_mask", "classes": classes, "classes_suffix": "_type"}
    folder.convert(images, instances, tmp_path / "a", **options)
    dataset = read_dataset(tmp_path / "a")
    assert dataset.metadata.class_names == ("class 2", "class 5")
    assert read_classes(dataset.splits["test"][0]["classes"]) == {1: 1, 2: 0}
    folder.convert(images, instances, tmp_path / "b", class_names="stroma, tumour", **options)
    assert read_dataset(tmp_path / "b").metadata.class_names == ("stroma", "tumour")
    with pytest.raises(ConfigurationError, match=r"1 names for 2 classes, whose values are \[2, 5\]"):
        folder.convert(images, instances, tmp_path / "c", class_names="tumour", **options)


def test_classes_from_the_files_of_hovernet_and_consep(tmp_path: Path, images: Path) -> None:
    types = {"inst_type": np.array([[5], [2]]), "inst_uid": np.array([[7], [40]])}
    for number, variables in enumerate(({"type_map": class_map()}, types)):
        mats = tmp_path / f"mats{number}"
        mats.mkdir()
        for image in images.iterdir():
            scipy.io.savemat(mats / f"{image.stem}.mat", {"inst_map": label_map(), **variables})
        folder.convert(images, mats, tmp_path / str(number), classes=mats)
        dataset = read_dataset(tmp_path / str(number))
        assert dataset.metadata.class_names == ("class 2", "class 5")
        assert read_classes(dataset.splits["test"][0]["classes"]) == {1: 1, 2: 0}


def test_classes_from_json(tmp_path: Path, images: Path) -> None:
    instances = write_maps(tmp_path / "instances", images, ".npy", label_map())
    (tmp_path / "classes").mkdir()
    for image in images.iterdir():
        (tmp_path / "classes" / f"{image.stem}.json").write_text('{"7": 0, "40": 3}')
    folder.convert(images, instances, tmp_path / "mine", classes=tmp_path / "classes")
    dataset = read_dataset(tmp_path / "mine")
    assert dataset.metadata.class_names == ("class 0", "class 3")
    assert read_classes(dataset.splits["test"][0]["classes"]) == {1: 0, 2: 1}


def write_images(folder: Path, names: Iterable[str], empty: Iterable[str] = ()) -> tuple[Path, Path]:
    """Write images and label maps; those of ``empty`` have no nucleus."""
    for name in ("images", "labels"):
        (folder / name).mkdir(exist_ok=True)
    for name in names:
        Image.fromarray(noise(8, 10)).save(folder / "images" / f"{name}.png")
        np.save(folder / "labels" / f"{name}.npy", label_map() * (name not in set(empty)))
    return folder / "images", folder / "labels"


def test_three_images_are_enough_for_a_validation(tmp_path: Path) -> None:
    folder.convert(*write_images(tmp_path, "abc"), tmp_path / "out")
    counts = {name: len(items) for name, items in read_dataset(tmp_path / "out").splits.items()}
    assert counts == {"training": 2, "validation": 1, "test": 0}


@pytest.mark.parametrize("group_pattern", [None, "^."])
def test_validation_images_have_nuclei(tmp_path: Path, group_pattern: str | None) -> None:
    names = [f"{letter}{number}" for letter in "abcdefghij" for number in range(2)]
    parts = write_images(tmp_path, names)
    options = {"group_pattern": group_pattern, "fractions": {"training": 0.7, "validation": 0.2, "test": 0.1}}
    folder.convert(*parts, tmp_path / "first", **options)
    drawn = [item["id"] for item in read_dataset(tmp_path / "first").splits["validation"]]
    write_images(tmp_path, names, empty=drawn)
    folder.convert(*parts, tmp_path / "second", **options)
    splits = read_dataset(tmp_path / "second").splits
    assert len(splits["validation"]) == len(drawn)
    assert all(read_instances(Path(item["instances"])).any() for item in splits["validation"])
    assert {item["id"] for item in splits["training"]} >= set(drawn)
    folder.convert(*parts, tmp_path / "again", **options)
    assert (
        read_dataset(tmp_path / "again").metadata.protocols
        == read_dataset(tmp_path / "second").metadata.protocols
    )


@pytest.mark.parametrize("pattern", [r"^P\d", r"^(P\d)_"])
def test_groups_stay_together(tmp_path: Path, images: Path, pattern: str) -> None:
    instances = write_maps(tmp_path / "instances", images, ".npy", label_map())
    folder.convert(images, instances, tmp_path / "mine", group_pattern=pattern)
    dataset = read_dataset(tmp_path / "mine")
    splits: dict[str, set[str]] = {}
    for split, items in dataset.splits.items():
        for item in items:
            assert item["group"] == item["id"][:2]
            splits.setdefault(item["group"], set()).add(split)
    assert all(len(members) == 1 for members in splits.values())


def test_your_own_splits(tmp_path: Path, images: Path) -> None:
    instances = write_maps(tmp_path / "instances", images, ".npy", label_map())
    (tmp_path / "splits.json").write_text(json.dumps({"training": ["P0_0", "P0_1"], "test": ["P4_9"]}))
    summary = folder.convert(images, instances, tmp_path / "mine", splits=tmp_path / "splits.json", workers=2)
    assert {part: count.images for part, count in summary.splits.items()} == {
        "training": 2,
        "validation": 0,
        "test": 1,
        "unused": 7,
    }
    (tmp_path / "splits.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="not a JSON object"):
        folder.convert(images, instances, tmp_path / "other", splits=tmp_path / "splits.json")


NAMES = ("Fall_Möller", "Fall_Müller", "_a", "-b", "(2) c", "ä, ö & 50 %", "細胞", "Con", "d. ", "e.f", "x:y")


def pairs_named(
    root: Path, names: Iterable[str], image_form: str = "NFC", label_form: str = "NFC"
) -> dict[str, Path]:
    """Write images and label maps in which image k has k nuclei."""
    folders = {"images": root / "images", "instances": root / "instances"}
    for number, name in enumerate(names, start=1):
        for path in folders.values():
            path.mkdir(exist_ok=True)
        image_name, label_name = (unicodedata.normalize(form, name) for form in (image_form, label_form))
        Image.fromarray(noise(8, 20, seed=number)).save(folders["images"] / f"{image_name}.png")
        labels = np.zeros((8, 20), np.uint16)
        labels[1, 1 : 1 + number] = range(1, 1 + number)
        Image.fromarray(labels).save(folders["instances"] / f"{label_name}.tif")
    return folders


@pytest.mark.parametrize(("image_form", "label_form"), [("NFC", "NFC"), ("NFD", "NFC")])
def test_ids_keep_the_names_of_the_files(tmp_path: Path, image_form: str, label_form: str) -> None:
    folder.convert(**pairs_named(tmp_path, NAMES, image_form, label_form), output_dir=tmp_path / "mine")
    validate_dataset(tmp_path / "mine")
    found = {
        item["id"]: int(read_instances(item["instances"]).max())
        for item in read_dataset(tmp_path / "mine").items()
    }
    changed = {"Con": "_Con", "d. ": "d_", "x:y": "x_y"}
    assert found == {changed.get(name, name): number for number, name in enumerate(NAMES, start=1)}


def test_a_similar_name_is_not_a_partner(tmp_path: Path) -> None:
    folders = pairs_named(tmp_path, ("Fall_Möller", "Fall_Müller"))
    (folders["instances"] / "Fall_Müller.tif").unlink()
    with pytest.raises(DatasetError, match=r"nothing for 1 of 2 images, first Fall_Müller\.png"):
        folder.convert(**folders, output_dir=tmp_path / "mine")


@pytest.mark.parametrize(
    ("first", "second"), [("a.png", "a.tif"), ("b.png", "B.png"), ("c_d.png", "c:d.png")]
)
def test_images_of_one_id_are_both_named(tmp_path: Path, first: str, second: str) -> None:
    folders = pairs_named(tmp_path, ("other",))
    for name in (first, second):
        Image.fromarray(noise(8, 20)).save(folders["images"] / name)
    one, two = sorted((first, second))
    with pytest.raises(DatasetError, match=f"images: {re.escape(one)} and {re.escape(two)} are both of"):
        folder.convert(**folders, output_dir=tmp_path / "mine")


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("255.png", Image.fromarray(255 * (label_map() > 0).astype(np.uint8))),
        ("1.png", Image.fromarray((label_map() > 0).astype(np.uint8))),
        ("1bit.png", Image.fromarray(label_map() > 0)),
    ],
)
def test_binary_masks_are_noticed_and_taken_apart_on_request(
    tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture, name: str, mask: Image.Image
) -> None:
    (tmp_path / "masks").mkdir()
    for image in images.iterdir():
        mask.save(tmp_path / "masks" / image.name)
    summary = folder.convert(images, tmp_path / "masks", tmp_path / "one")
    assert sum(count.nuclei for count in summary.splits.values()) == 10
    assert "--binary components" in caplog.text
    caplog.clear()
    summary = folder.convert(images, tmp_path / "masks", tmp_path / "two", binary="components")
    assert sum(count.nuclei for count in summary.splits.values()) == 20
    assert caplog.text == ""


def test_ids_are_not_noticed_as_masks(tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    instances = write_maps(tmp_path / "instances", images, ".npy", label_map())
    folder.convert(images, instances, tmp_path / "mine")
    assert caplog.text == ""
    with pytest.raises(DatasetError, match="3 values, expected a binary mask of two"):
        folder.convert(images, instances, tmp_path / "other", binary="components")
    with pytest.raises(ConfigurationError, match="binary 'yes': expected 'components'"):
        folder.convert(images, instances, tmp_path / "other", binary="yes")  # type: ignore[arg-type]
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "P0_0.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="binary masks have no ids"):
        folder.convert(
            images, instances, tmp_path / "other", classes=tmp_path / "classes", binary="components"
        )


def test_an_image_is_converted_as_viewers_show_it(tmp_path: Path) -> None:
    folders = pairs_named(tmp_path, ("a",))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    Image.fromarray(noise(8, 20, seed=1)).save(folders["images"] / "a.png", exif=exif)
    folder.convert(**folders, output_dir=tmp_path / "mine")
    (item,) = read_dataset(tmp_path / "mine").items()
    assert np.array_equal(read_image(item["image"]), noise(8, 20, seed=1)[::-1, ::-1])


def test_the_range_of_wide_values_can_be_given(tmp_path: Path) -> None:
    folders = pairs_named(tmp_path, ("a",))
    wide = np.full((8, 20), 1000, np.uint16)
    wide[0, 0] = 4000
    Image.fromarray(wide).save(folders["images"] / "a.png")
    folder.convert(**folders, output_dir=tmp_path / "mine", intensity_range=(0, 4000))
    (item,) = read_dataset(tmp_path / "mine").items()
    assert np.unique(read_image(item["image"])).tolist() == [64, 255]


def test_images_without_nuclei_are_normal(tmp_path: Path, images: Path) -> None:
    instances = write_maps(tmp_path / "instances", images, ".npy", np.zeros((8, 10), np.uint8))
    classes = write_maps(tmp_path / "classes", images, ".npy", np.zeros((8, 10), np.uint8))
    summary = folder.convert(images, instances, tmp_path / "mine", classes=classes)
    assert sum(count.nuclei for count in summary.splits.values()) == 0


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda root: (root / "instances" / "P0_0.npy").unlink(),
            r"nothing for 1 of 10 images, first P0_0\.png",
        ),
        (lambda root: np.save(root / "instances" / "new.npy", label_map()), "1 files without an image"),
        (lambda root: np.save(root / "instances" / "P0_0.npy", label_map()[1:]), r"is \(7, 10\), its image"),
        (
            lambda root: Image.fromarray(label_map().astype(np.uint16)).save(root / "instances" / "P0_0.png"),
            "are both of 'P0_0'",
        ),
        (lambda root: (root / "instances" / "P0_0.npy").write_bytes(b"x"), "P0_0"),
        (lambda root: (root / "images" / "P0_0.png").write_bytes(b"x"), "P0_0"),
    ],
)
def test_wrong_folders_leave_nothing_behind(tmp_path: Path, images: Path, break_it, message: str) -> None:  # type: ignore[no-untyped-def]
    instances = write_maps(tmp_path / "instances", images, ".npy", label_map())
    break_it(tmp_path)
    with pytest.raises((DatasetError, ImageReadError), match=message):
        folder.convert(images, instances, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "instances"]


@pytest.mark.parametrize(("pattern", "message"), [("(", "not a regular expression"), ("Q", "does not occur")])
def test_wrong_patterns_are_named(tmp_path: Path, images: Path, pattern: str, message: str) -> None:
    instances = write_maps(tmp_path / "instances", images, ".npy", label_map())
    with pytest.raises(ConfigurationError, match=message):
        folder.convert(images, instances, tmp_path / "mine", group_pattern=pattern)
