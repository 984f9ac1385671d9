import json
from pathlib import Path

import pytest

from nucsam_monai.data.dataset import (
    DATASET_FILE,
    DatasetMetadata,
    load_items,
    read_dataset,
    training_domains,
)
from nucsam_monai.data.protocols import Protocol, divided_groups
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.data.writer import DatasetWriter
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from tests.data.test_dataset import edit, label_map, noise

FIRST = Protocol(("a", "b"), ("c",), ("d",), "the first")
SECOND = Protocol((), (), ("a", "b", "c", "d", "e"), "everything is tested")


def write(folder: Path, *, protocol: str = "first", **changes: Protocol) -> Path:
    metadata = DatasetMetadata(
        name="toy",
        domain="toy",
        modality="H&E",
        magnification=None,
        mpp=None,
        licence="CC0-1.0",
        citation="nobody",
        protocols={"first": FIRST, "second": SECOND, **changes},
        protocol=protocol,
    )
    split_of_id = metadata.protocols[protocol].split_of_id()
    with DatasetWriter(folder, metadata) as writer:
        for sample_id in "abcde":
            group = "patient" if sample_id in "ad" else None
            split = split_of_id.get(sample_id, "unused")
            writer.add(split, sample_id, noise(6, 8), label_map(1, 2), group=group)
    return folder


DIVIDED = Protocol(FIRST.training, FIRST.validation, FIRST.test, "published", divides_groups=True)


def ids(folder: Path, split: str, protocol: str | dict[str, str] | None = None) -> list[str]:
    return [item["id"] for item in load_items(folder, split, protocol=protocol)]


def test_the_chosen_protocol_splits_and_the_others_are_kept(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy", protocol="second", first=DIVIDED)
    summary = validate_dataset(folder)
    assert (summary.splits["test"].images, "unused" in summary.splits) == (5, False)
    dataset = read_dataset(folder)
    assert dataset.metadata.protocols == {"first": DIVIDED, "second": SECOND}
    assert dataset.metadata.protocol == "second"


def test_images_that_a_protocol_leaves_out_are_unused(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy", first=DIVIDED)
    assert [item["id"] for item in read_dataset(folder).unused] == ["e"]
    assert validate_dataset(folder).splits["unused"].images == 1
    assert len(json.loads((folder / DATASET_FILE).read_text())["unused"]) == 1
    with pytest.raises(ConfigurationError, match="expected one of training"):
        load_items(folder, "unused")


@pytest.mark.parametrize("choice", ["second", {"toy": "second"}])
def test_another_protocol_at_reading_time(tmp_path: Path, choice: str | dict[str, str]) -> None:
    folder = write(tmp_path / "toy", first=DIVIDED)
    assert ids(folder, "test") == ["d"]
    assert ids(folder, "test", choice) == list("abcde")
    assert training_domains(folder) == ["toy"]
    assert training_domains(folder, choice) == []


def test_unknown_protocols_and_datasets_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy", first=DIVIDED)
    with pytest.raises(ConfigurationError, match=r"'third': dataset 'toy' has first, second"):
        load_items(folder, "test", protocol="third")
    with pytest.raises(ConfigurationError, match="dataset 'other' is not in"):
        load_items(folder, "test", protocol={"other": "first"})


def test_a_group_is_divided_only_where_the_protocol_says_so(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="group 'patient' is in 'training' and 'test'"):
        write(tmp_path / "toy")
    assert not (tmp_path / "toy").exists()
    # It is an error of a protocol that is not the chosen one, too.
    with pytest.raises(DatasetError, match="protocol 'first': group 'patient'"):
        write(tmp_path / "toy", protocol="second")
    write(tmp_path / "toy", first=DIVIDED)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (Protocol(("a", "z"), (), ()), "id 'z' of 'training' is not in the dataset"),
        (Protocol(("a",), ("a",), ()), "id 'a' is in 'training' and again in 'validation'"),
    ],
)
def test_protocols_that_do_not_fit_are_refused(tmp_path: Path, protocol: Protocol, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        write(tmp_path / "toy", protocol="second", first=protocol)


@pytest.mark.parametrize(
    "protocols", [[], {"first": []}, {"first": {"training": ["a"]}}, {"first": {"training": [1]}}]
)
def test_damaged_protocols_are_one_error(tmp_path: Path, protocols: object) -> None:
    folder = write(tmp_path / "toy", protocol="second", first=DIVIDED)
    edit(folder, lambda content: content.update(protocols=protocols))
    with pytest.raises(DatasetError, match="protocol"):
        read_dataset(folder)


def test_protocol_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy", protocol="second", first=DIVIDED)
    edit(folder, lambda content: content.update(protocol="third"))
    with pytest.raises(DatasetError, match="wrong type: protocol"):
        read_dataset(folder)


def test_groups_in_several_splits_are_found() -> None:
    groups = {"a": "1", "b": "1", "c": "2"}
    assert not list(divided_groups({"training": ["a", "b"], "test": ["c", "d"]}, groups))
    assert list(divided_groups({"training": ["a"], "validation": ["b"], "test": ["c"]}, groups)) == [
        "group '1' is in 'training' and in 'validation'"
    ]
    assert not list(divided_groups({"training": ["a"], "test": ["b"]}, {}))
