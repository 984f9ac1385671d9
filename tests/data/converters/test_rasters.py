import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nucsam_monai.data.converters.rasters import (
    NpyRows,
    decode_first_channel,
    decode_labels,
    decode_mask,
    decode_rgb,
    ids_row,
    majority_values,
    open_npy,
    rgb_row,
)
from nucsam_monai.data.converters.sources import open_source
from nucsam_monai.utils.errors import DatasetError
from tests.data.original_pannuke import npy
from tests.data.originals import noise, png, write_folder, write_zip


def palette_png(indices: np.ndarray, colours: list[int], **options: object) -> bytes:
    image = Image.fromarray(indices, mode="P")
    image.putpalette(colours)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_alpha_is_dropped_and_the_colours_stay() -> None:
    pixels = noise(5, 4, 4)
    np.testing.assert_array_equal(decode_rgb(png(pixels), "a"), pixels[..., :3])


def test_grey_is_repeated() -> None:
    pixels = noise(5, 4, 1)
    for content in (png(pixels), png(np.stack([pixels, noise(5, 4, 1, 1)], axis=2))):
        np.testing.assert_array_equal(decode_rgb(content, "a"), np.repeat(pixels[..., None], 3, axis=2))


@pytest.mark.parametrize("options", [{}, {"transparency": b"\x00\x80\xff"}])
def test_palette_is_looked_up(options: dict[str, object]) -> None:
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    colours = [0, 0, 0, 10, 20, 30, 200, 100, 0]
    content = palette_png(indices, colours, **options)
    np.testing.assert_array_equal(
        decode_rgb(content, "a"), np.array(colours, np.uint8).reshape(3, 3)[indices]
    )
    np.testing.assert_array_equal(decode_mask(content, "a"), indices > 0)
    np.testing.assert_array_equal(decode_labels(content, "a.png"), indices)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA"])
def test_mask_of_any_mode(mode: str) -> None:
    pixels = np.zeros((3, 4), np.uint8)
    pixels[1, 2] = 255
    mask = decode_mask(png(pixels, mode), "a")
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, pixels > 0)


def test_sixteen_bits_are_labels_but_not_an_image() -> None:
    content = png(np.array([[0, 40_000]], np.uint16))
    assert decode_labels(content, "a.png").tolist() == [[0, 40_000]]
    with pytest.raises(DatasetError, match="a: image of mode I;16, expected 8 bits"):
        decode_rgb(content, "a")


def test_labels_have_one_channel() -> None:
    pixels = noise(3, 3)
    with pytest.raises(DatasetError, match=r"a\.zip: b\.png: expected one id per pixel"):
        decode_labels(png(pixels), "a.zip: b.png")
    np.testing.assert_array_equal(decode_first_channel(png(pixels), "a"), pixels[..., 0])


@pytest.mark.parametrize("content", [b"", b"no image", png(noise(30, 30))[:500]])
def test_damaged_image_is_named(content: bytes) -> None:
    with pytest.raises(DatasetError, match=r"x\.png: not a readable image"):
        decode_rgb(content, "x.png")


def test_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = png(np.zeros((50, 50), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DatasetError, match="not a readable image"):
        decode_mask(content, "a")


ARRAY = np.arange(24, dtype=np.float32).reshape(4, 3, 2)


def read_rows(content: bytes) -> list[np.ndarray]:
    return list(NpyRows(io.BytesIO(content), "a.npy"))


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize(
    "array",
    [
        ARRAY,
        ARRAY.astype(">u2"),
        np.arange(5),
        np.array(["Breast", "Bile-duct"]),
        np.zeros((0, 3)),
        np.asfortranarray(np.arange(5)),
    ],
)
def test_rows_are_those_of_the_array(array: np.ndarray, version: tuple[int, int]) -> None:
    rows = NpyRows(io.BytesIO(npy(array, version)), "a.npy")
    assert (len(rows), rows.shape, rows.dtype) == (len(array), array.shape, array.dtype)
    read = list(rows)
    assert len(read) == len(array)
    for row, expected in zip(read, array, strict=True):
        np.testing.assert_array_equal(row, expected)


def test_rows_come_out_of_folders_and_archives_in_archives(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip", {"x/a.npy": npy(ARRAY)}).read_bytes()
    members = {"b/a.npy": npy(ARRAY), "inner.zip": inner}
    for path in (write_folder(tmp_path / "a", members), write_zip(tmp_path / "a.zip", members)):
        with open_source(path) as source:
            for name in ("b/a.npy", "inner.zip/x/a.npy"):
                with open_npy(source, name) as first, open_npy(source, name) as second:
                    for row, (one, other) in enumerate(zip(first, second, strict=True)):
                        np.testing.assert_array_equal(one, ARRAY[row])
                        np.testing.assert_array_equal(other, ARRAY[row])


def test_only_the_row_that_is_needed_is_read() -> None:
    content = npy(ARRAY)
    file = io.BytesIO(content)
    next(iter(NpyRows(file, "a.npy")))
    assert file.tell() == len(content) - 3 * ARRAY[0].nbytes


@pytest.mark.parametrize("missing", [1, 24, 25, 72])
def test_truncated_array_names_the_row(missing: int) -> None:
    row = 4 - 1 - (missing - 1) // 24
    with pytest.raises(DatasetError, match=rf"a\.npy: ends in row {row} of 4\. Download the archive again"):
        read_rows(npy(ARRAY)[:-missing])


WRONG = {
    "empty file": (b"", "not a .npy file"),
    "page": (b"<!doctype html><html></html>", "not a .npy file"),
    "cut header": (npy(ARRAY)[:40], "not a .npy file"),
    "later version": (b"\x93NUMPY\x09\x00" + npy(ARRAY)[8:], "not a .npy file"),
    "objects": (npy(np.array([{"a": 1}, None], object)), "Python objects, which are never unpickled"),
    "object in a record": (npy(np.zeros(2, [("a", object)])), "Python objects, which are never unpickled"),
    "Fortran order": (npy(np.asfortranarray(ARRAY)), "is in Fortran order, expected C order"),
    "single number": (npy(np.array(3.0)), r"has the shape \(\), expected rows that are not empty"),
    "empty rows": (npy(np.zeros((4, 0, 3))), r"has the shape \(4, 0, 3\), expected rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_files_are_refused(case: str) -> None:
    content, message = WRONG[case]
    with pytest.raises(DatasetError, match=f"^a.npy: .*{message}"):
        read_rows(content)


def test_flipped_bit_in_an_archive_is_noticed(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (50, 100), dtype=np.uint8)
    path = write_zip(tmp_path / "a.zip", {"a.npy": npy(array)})
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    with (
        open_source(path) as source,
        pytest.raises(DatasetError, match=r"a\.npy is damaged"),
        open_npy(source, "a.npy") as rows,
    ):
        list(rows)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float64, bool])
def test_images_of_any_type(dtype: type) -> None:
    row = np.array([[[0, 1, 1]]], dtype=dtype)
    pixels = rgb_row(row, "a")
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, row)
    np.testing.assert_array_equal(rgb_row(np.array([[[0.0, 254.9, 255]]]), "a"), [[[0, 254, 255]]])


@pytest.mark.parametrize("value", [-1, 255.5, 65_535, np.nan, np.inf])
def test_images_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(DatasetError, match=r"^a: pixels from .*, expected 0 to 255"):
        rgb_row(np.array([[[0, 200, value]]]), "a")


@pytest.mark.parametrize("value", [0.5, -1, 2.0**31, np.nan, np.inf])
def test_ids_must_be_whole_numbers(value: float) -> None:
    np.testing.assert_array_equal(ids_row(np.array([[0, 70_000.0]]), "a"), [[0, 70_000]])
    with pytest.raises(DatasetError, match=r"^a: expected ids that are whole numbers"):
        ids_row(np.array([[0, value]]), "a")


def test_every_instance_gets_the_value_of_most_of_its_pixels() -> None:
    instances, values = np.array([[9, 9, 9, 2]]), np.array([[4, 5, 5, 1]])
    assert majority_values(instances, values, "a") == {2: 1, 9: 5}


def test_an_instance_without_a_class_is_named() -> None:
    with pytest.raises(DatasetError, match=r"a\.png: 2 instances have no class, first 3"):
        majority_values(np.array([[1, 4, 3]]), np.array([[1, 0, 0]]), "a.png")


def test_maps_of_different_shape_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"a\.png: class map is \(4, 8\), instance map is \(8, 8\)"):
        majority_values(np.zeros((8, 8), int), np.zeros((4, 8), int), "a.png")
