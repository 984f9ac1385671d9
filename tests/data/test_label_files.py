from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from nucsam_monai.data.label_files import (
    read_classes,
    read_image,
    read_instances,
    renumber,
    write_classes,
    write_image,
    write_instances,
)
from nucsam_monai.utils.errors import DatasetError


@given(arrays(np.int32, (5, 6), elements=st.sampled_from([0, 1, 2, 7, 300, 70_000])))
def test_renumber_keeps_order_and_shapes(instances: np.ndarray) -> None:
    contiguous, new_ids = renumber(instances)
    assert contiguous.dtype == np.int32
    assert list(new_ids.values()) == list(range(1, len(new_ids) + 1))
    assert sorted(new_ids) == list(new_ids)
    for old, new in {0: 0, **new_ids}.items():
        np.testing.assert_array_equal(contiguous == new, instances == old)


def test_renumber_without_background_or_pixels() -> None:
    assert renumber(np.full((2, 2), 5, np.uint16))[0].tolist() == [[1, 1], [1, 1]]
    assert renumber(np.zeros((0, 3), np.int32))[1] == {}


@pytest.mark.parametrize(("highest", "suffix"), [(0, ".png"), (65_535, ".png"), (65_536, ".tif")])
def test_instances_survive_the_file(tmp_path: Path, highest: int, suffix: str) -> None:
    instances = np.array([[0, 1, highest], [0, 0, 2]], dtype=np.int32)
    path = write_instances(tmp_path, "a", instances)
    assert path.suffix == suffix
    restored = read_instances(path)
    assert restored.dtype == np.int32
    np.testing.assert_array_equal(restored, instances)


def test_image_and_classes_survive_the_file(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    write_image(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    write_classes(tmp_path / "a.json", {2: 1, 1: 0})
    assert read_classes(tmp_path / "a.json") == {1: 0, 2: 1}


def test_wrong_images_are_named(tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(grey)
    rgb = tmp_path / "rgb.png"
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(rgb)
    cut = tmp_path / "cut.png"
    cut.write_bytes(rgb.read_bytes()[:40])
    cut_tiff = tmp_path / "cut.tif"
    cut_tiff.write_bytes(b"II*\0abc")
    with pytest.raises(DatasetError, match=r"grey.png: expected RGB"):
        read_image(grey)
    with pytest.raises(DatasetError, match=r"rgb.png: expected an instance map"):
        read_instances(rgb)
    with pytest.raises(DatasetError, match=r"none.png: the file is missing"):
        read_image(tmp_path / "none.png")
    for file in (cut, cut_tiff):
        with pytest.raises(DatasetError, match="not a readable image"):
            read_instances(file)


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": 1}', '{"1": "x"}', '{"1": true}'])
def test_wrong_classes_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"c\.json"):
        read_classes(path)


def test_missing_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_classes(tmp_path / "none.json")
