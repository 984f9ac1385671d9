import json
import logging
from pathlib import Path

import numpy as np
import pytest

from nucsam_monai.data import DatasetWriter, class_names, domain_classes
from nucsam_monai.data.dataset import (
    DatasetMetadata,
    find_datasets,
    load_items,
    read_dataset,
    training_domains,
)
from nucsam_monai.data.label_files import read_classes, read_instances
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.data.writer import SplitCounts
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from tests.data.originals import noise


def metadata(domain: str = "toy", class_names: tuple[str, ...] = ("nucleus",)) -> DatasetMetadata:
    return DatasetMetadata(
        name=domain,
        domain=domain,
        modality="H&E",
        magnification=40.0,
        mpp=None,
        licence="CC0-1.0",
        citation="nobody",
        class_names=class_names,
        source={"a.zip": "0" * 64},
    )


def label_map(*ids: int) -> np.ndarray:
    instances = np.zeros((6, 8), dtype=np.int32)
    for row, instance_id in enumerate(ids):
        instances[row, 1:4] = instance_id
    return instances


def write_toy(
    folder: Path, domain: str = "toy", splits: tuple[str, ...] = ("training", "training", "test")
) -> Path:
    with DatasetWriter(folder, metadata(domain, ("benign", "malignant"))) as writer:
        for number, split in enumerate(splits):
            writer.add(
                split,
                f"s{number}",
                noise(6, 8, seed=number),
                label_map(9, 4),
                classes={4: 1, 9: 0},
                tissue="liver",
                group=f"p-{split}",
            )
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = write_toy(tmp_path / "toy")
    dataset = read_dataset(folder)
    assert dataset.metadata.class_names == ("benign", "malignant")
    assert dataset.metadata.mpp is None
    assert dataset.metadata.source == {"a.zip": "0" * 64}
    item = dataset.splits["training"][0]
    assert item == {
        "image": str(folder / "images" / "s0.png"),
        "instances": str(folder / "instances" / "s0.png"),
        "classes": str(folder / "classes" / "s0.json"),
        "domain": "toy",
        "id": "s0",
        "tissue": "liver",
        "group": "p-training",
    }
    np.testing.assert_array_equal(read_instances(item["instances"]), label_map(2, 1))
    assert read_classes(item["classes"]) == {1: 1, 2: 0}
    assert validate_dataset(folder).splits == {
        "training": SplitCounts(2, 4),
        "validation": SplitCounts(0, 0),
        "test": SplitCounts(1, 2),
    }
    assert names_in(tmp_path) == ["toy"]


def test_image_without_nuclei_is_normal(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "toy", metadata(class_names=("a",))) as writer:
        writer.add("test", "empty", noise(6, 8), label_map(), classes={})
    assert validate_dataset(tmp_path / "toy").splits["test"] == SplitCounts(1, 0)


def test_more_nuclei_than_uint16_holds(tmp_path: Path) -> None:
    instances = np.arange(260 * 260, dtype=np.int32).reshape(260, 260)
    with DatasetWriter(tmp_path / "toy", metadata()) as writer:
        writer.add("test", "many", noise(260, 260), instances)
    item = read_dataset(tmp_path / "toy").splits["test"][0]
    assert item["instances"].endswith("many.tif")
    np.testing.assert_array_equal(read_instances(item["instances"]), instances)
    assert validate_dataset(tmp_path / "toy").splits["test"].nuclei == 260 * 260 - 1


def test_monai_reads_the_datalist_and_the_images(tmp_path: Path) -> None:
    from monai.data import load_decathlon_datalist
    from monai.transforms import LoadImage

    folder = write_toy(tmp_path / "toy")
    items = load_decathlon_datalist(str(folder / "dataset.json"), data_list_key="training")
    assert items[0]["image"] == str(folder / "images" / "s0.png")
    loaded = LoadImage(image_only=True, reverse_indexing=False)(load_items(folder, "training")[0]["image"])
    np.testing.assert_array_equal(np.asarray(loaded), noise(6, 8, seed=0))


def test_several_datasets_are_concatenated_by_domain(tmp_path: Path) -> None:
    write_toy(tmp_path / "b", "beta")
    write_toy(tmp_path / "a", "alpha", ("test",))
    (tmp_path / ".hidden-x").mkdir()
    (tmp_path / ".hidden-x" / "dataset.json").write_text("{")
    assert find_datasets(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find_datasets(tmp_path / "a") == [tmp_path / "a"]
    assert training_domains(tmp_path) == ["beta"]
    assert [item["domain"] for item in load_items(tmp_path, "test")] == ["alpha", "beta"]
    assert [item["domain"] for item in load_items(tmp_path, "test", ["beta", "alpha"])] == ["beta", "alpha"]
    assert [item["domain"] for item in load_items(tmp_path, "test", "beta")] == ["beta"]


def test_relative_dataset_dir_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy(tmp_path / "toy")
    monkeypatch.chdir(tmp_path)
    assert Path(load_items("toy", "test")[0]["image"]).is_absolute()


def test_unknown_names_are_answered_with_the_permitted_ones(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    with pytest.raises(ConfigurationError, match="training, validation, test"):
        load_items(tmp_path, "train")
    with pytest.raises(ConfigurationError, match=r"'x': .* has toy"):
        load_items(tmp_path, "test", ["x"])
    with pytest.raises(DatasetError, match=r"validation of toy hold no image; .* training, test"):
        load_items(tmp_path, "validation")


def test_missing_datasets_say_what_to_do(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DatasetError, match="nucsam datasets"):
            find_datasets(folder)
        with pytest.raises(DatasetError, match="nucsam datasets"):
            read_dataset(folder)


def test_failure_leaves_nothing_behind(tmp_path: Path) -> None:

    def fail(error: BaseException | None) -> None:
        with DatasetWriter(tmp_path / "toy", metadata()) as writer:
            writer.add("test", "a", noise(6, 8), label_map(1))
            writer.note(not_for_json=object())
            if error:
                raise error

    for error, kind in (
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError("full"), OSError),
        (None, TypeError),
    ):
        with pytest.raises(kind):
            fail(error)
        assert names_in(tmp_path) == []
    with pytest.raises(DatasetError, match="no sample"), DatasetWriter(tmp_path / "toy", metadata()):
        pass
    assert names_in(tmp_path) == []


def test_existing_data_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    write_toy(tmp_path / "toy")
    before = (tmp_path / "toy" / "dataset.json").read_bytes()
    with pytest.raises(DatasetError, match=r"toy: exists already .* --output_dir"):
        write_toy(tmp_path / "toy")
    assert (tmp_path / "toy" / "dataset.json").read_bytes() == before


@pytest.mark.parametrize(
    ("sample_id", "image", "instances", "options", "message"),
    [
        ("../x", noise(6, 8), label_map(1), {}, "file name"),
        ("a/b", noise(6, 8), label_map(1), {}, "file name"),
        ("", noise(6, 8), label_map(1), {}, "file name"),
        ("S0", noise(6, 8), label_map(1), {}, "twice"),
        ("a", noise(6, 8, 4), label_map(1), {}, "uint8"),
        ("a", noise(8, 6), label_map(1), {}, "instance map is"),
        ("a", noise(6, 8), label_map(-1), {}, "integers from 0"),
        ("a", noise(6, 8), label_map(1).astype(float), {}, "integers from 0"),
        ("a", noise(6, 8), label_map(1, 5), {"classes": {1: 0}}, r"no class for instances \[5\]"),
        ("a", noise(6, 8), label_map(1), {"classes": {1: 1}}, r"class ids \[1\], expected 0 to 0"),
        ("a", noise(6, 8), label_map(1), {"group": "p"}, "must stay in one split"),
    ],
)
def test_wrong_samples_are_refused(
    tmp_path: Path, sample_id: str, image: np.ndarray, instances: np.ndarray, options: dict, message: str
) -> None:
    with DatasetWriter(tmp_path / "toy", metadata()) as writer:
        writer.add("training", "s0", noise(6, 8), label_map(1), group="p")
        with pytest.raises(DatasetError, match=message):
            writer.add("test", sample_id, image, instances, **options)


def test_unknown_split_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match="validation"),
        DatasetWriter(tmp_path / "t", metadata()) as writer,
    ):
        writer.add("val", "a", noise(6, 8), label_map(1))


def edit(folder: Path, change: object) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    change(content)  # type: ignore[operator]
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("name"), "wrong type: name"),
        (lambda content: content.update(class_names="x"), "class_names"),
        (lambda content: content.update(mpp="0.25"), "mpp"),
        (lambda content: content.update(test={}), "not a list"),
        (lambda content: content["test"].append("x"), r"test\[1\]: expected an object"),
        (lambda content: content["test"][0].pop("domain"), r"test\[0\]: without domain"),
        (lambda content: content["test"][0].update(domain="other"), "domain 'other'"),
        (lambda content: content["test"][0].update(image="../s.png"), "not a path below"),
        (lambda content: content["test"][0].update(image="/etc/passwd"), "not a path below"),
        (lambda content: content["test"][0].update(image="C:\\x.png"), "not a path below"),
    ],
)
def test_wrong_datalists_are_refused(tmp_path: Path, change: object, message: str) -> None:
    folder = write_toy(tmp_path / "toy")
    edit(folder, change)
    with pytest.raises(DatasetError, match=message):
        read_dataset(folder)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_unreadable_datalist_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        read_dataset(tmp_path)


def write(folder, names):
    metadata = DatasetMetadata(
        folder.name, folder.name, "none", None, None, "CC0-1.0", "none", class_names=names
    )
    with DatasetWriter(folder, metadata) as writer:
        writer.add("training", "a", np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.int32))


def test_the_classes_that_all_datasets_share(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, ("a", "b"))
    assert class_names(tmp_path) == class_names(tmp_path / "one") == ["a", "b"]


def test_datasets_of_different_classes_have_one_class_and_say_so(tmp_path, caplog):
    write(tmp_path / "one", ("a", "b"))
    write(tmp_path / "two", ("b", "a"))
    with caplog.at_level(logging.WARNING):
        assert class_names(tmp_path) == ["nucleus"]
    assert "different classes" in caplog.text


def test_every_domain_has_its_own_classes(tmp_path):
    write(tmp_path / "one", ("a", "b"))
    write(tmp_path / "two", ("nucleus",))
    assert domain_classes(tmp_path, "one") == ["a", "b"]
    assert domain_classes(tmp_path, "two") == domain_classes(tmp_path, "unknown") == ["nucleus"]
    file = tmp_path / "two" / "dataset.json"
    file.write_text(file.read_text().replace('"domain": "two"', '"domain": "one"'))
    with pytest.raises(ConfigurationError, match=r"domain 'one': its datasets in .* have different classes"):
        domain_classes(tmp_path, "one")


def test_no_dataset_has_no_classes(tmp_path):
    with pytest.raises(DatasetError):
        class_names(tmp_path)
