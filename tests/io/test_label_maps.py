from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import ExifTags, Image

from nucsam_monai.io import (
    LABEL_MAP_SUFFIXES,
    decode_label_channels,
    decode_label_map,
    read_class_map,
    read_image,
    read_label_map,
    write_label_image,
)
from nucsam_monai.utils.errors import ConfigurationError, ImageReadError
from tests.data.encoded import bmp, mat, npy
from tests.data.originals import noise, png, tiff

LABELS = np.array([[0, 3, 3, 0], [7, 7, 0, 9], [0, 0, 0, 200]])
LARGE = LABELS * 300
HUGE = LABELS * 1000


def palette_image(path: Path) -> None:
    image = Image.fromarray(LABELS.astype(np.uint8), mode="P")
    image.putpalette([value % 256 for value in range(7, 7 + 768)])
    image.save(path, transparency=0)


WRITERS = {
    "grey.png": (LABELS, lambda path: Image.fromarray(LABELS.astype(np.uint8)).save(path)),
    "sixteen.png": (LARGE, lambda path: Image.fromarray(LARGE.astype(np.uint16)).save(path)),
    "palette.PNG": (LABELS, palette_image),
    "rgb.png": (LABELS, lambda path: Image.fromarray(np.dstack([LABELS] * 3).astype(np.uint8)).save(path)),
    "rgba.png": (
        LABELS,
        lambda path: Image.fromarray(np.dstack([*[LABELS] * 3, LABELS * 0 + 255]).astype(np.uint8)).save(
            path
        ),
    ),
    "alpha.png": (
        LABELS,
        lambda path: Image.fromarray(np.dstack([LABELS, LABELS * 0 + 255]).astype(np.uint8)).save(path),
    ),
    "row_of_rgb.png": (
        LABELS[:1],
        lambda path: Image.fromarray(np.dstack([LABELS[:1]] * 3).astype(np.uint8)).save(path),
    ),
    "grey.bmp": (LABELS, lambda path: Image.fromarray(LABELS.astype(np.uint8)).save(path)),
    "really_a_png.tif": (LABELS, lambda path: Image.fromarray(LABELS.astype(np.uint8)).save(path, "PNG")),
    "mask.png": (LABELS > 0, lambda path: Image.fromarray(LABELS > 0).save(path)),
    "eight.tif": (LABELS, lambda path: tifffile.imwrite(path, LABELS.astype(np.uint8))),
    "sixteen.tif": (LARGE, lambda path: tifffile.imwrite(path, LARGE.astype(np.uint16))),
    "unsigned.tiff": (HUGE, lambda path: tifffile.imwrite(path, HUGE.astype(np.uint32))),
    "signed.tif": (HUGE, lambda path: tifffile.imwrite(path, HUGE.astype(np.int32))),
    "float.tif": (HUGE, lambda path: tifffile.imwrite(path, HUGE.astype(np.float32))),
    "lzw.tif": (HUGE, lambda path: Image.fromarray(HUGE.astype(np.int32)).save(path, compression="tiff_lzw")),
    "ours.tif": (HUGE, lambda path: write_label_image(path, HUGE)),
    "rgb.tif": (
        LABELS,
        lambda path: tifffile.imwrite(path, np.dstack([LABELS] * 3).astype(np.uint8), photometric="rgb"),
    ),
    "palette.tif": (
        LABELS,
        lambda path: tifffile.imwrite(
            path, LABELS.astype(np.uint8), photometric="palette", colormap=np.full((3, 256), 9, np.uint16)
        ),
    ),
    "int64.npy": (HUGE, lambda path: np.save(path, HUGE)),
    "channel.npy": (LABELS, lambda path: np.save(path, LABELS[None].astype(float))),
    "fortran.npy": (LABELS, lambda path: np.save(path, np.asfortranarray(LABELS))),
    "row.npy": (LABELS[:1], lambda path: np.save(path, LABELS[:1])),
    "hovernet.mat": (
        LABELS,
        lambda path: scipy.io.savemat(path, {"inst_map": LABELS, "inst_type": np.ones((4, 1)), "note": "x"}),
    ),
    "single.mat": (HUGE, lambda path: scipy.io.savemat(path, {"labels": HUGE.astype(float), "note": ["x"]})),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_ids(tmp_path: Path, name: str) -> None:
    expected, write = WRITERS[name]
    write(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for labels in (read_label_map(tmp_path / name), decode_label_map(content, f"archive.zip: {name}")):
        assert labels.dtype == np.int32
        assert labels.flags.c_contiguous
        np.testing.assert_array_equal(labels, expected)


REFUSED = {
    "colours.png": (
        lambda path: Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3)).save(path),
        "expected one id per pixel",
    ),
    "row_of_colours.png": (
        lambda path: Image.fromarray(np.arange(12, dtype=np.uint8).reshape(1, 4, 3)).save(path),
        "expected one id per pixel",
    ),
    "stack.tif": (
        lambda path: tifffile.imwrite(path, np.zeros((5, 2, 2), np.uint8)),
        "expected one id per pixel",
    ),
    "lossy.png": (lambda path: Image.fromarray(LABELS.astype(np.uint8)).save(path, "JPEG"), "changes ids"),
    "fractions.tif": (
        lambda path: tifffile.imwrite(path, np.array([[0, 0.5]], np.float32)),
        "not probabilities",
    ),
    "nan.npy": (lambda path: np.save(path, np.array([[0, np.nan]])), "NaN"),
    "negative.npy": (lambda path: np.save(path, np.array([[0, -1]])), "ids from -1 to 0"),
    "beyond.npy": (lambda path: np.save(path, np.array([[0, 2**31]])), "Renumber the nuclei"),
    "stack.npy": (lambda path: np.save(path, np.zeros((2, 5, 5), int)), r"\(2, 5, 5\)"),
    "texts.npy": (lambda path: np.save(path, np.array([["a"]])), "integer ids"),
    "objects.npy": (lambda path: np.save(path, {"inst_map": LABELS}, allow_pickle=True), "never loaded"),
    "rubbish.npy": (lambda path: path.write_bytes(b"no array"), "not a .npy file"),
    "huge.npy": (
        lambda path: path.write_bytes(npy(LABELS).replace(b"(3, 4), }           ", b"(99999, 99999999), }")),
        "more than the allowed",
    ),
    "cut.npy": (lambda path: path.write_bytes(npy(LABELS)[:-8]), "damaged"),
    "archive.npy": (
        lambda path: (np.savez(path.with_suffix(".npz"), a=LABELS), path.with_suffix(".npz").rename(path)),
        "expected one array",
    ),
    "several.mat": (lambda path: scipy.io.savemat(path, {"a": LABELS, "b": LABELS}), "found a, b"),
    "texts.mat": (lambda path: scipy.io.savemat(path, {"a": "text"}), "found none"),
    "hdf.mat": (
        lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM" + bytes(400)),
        "-v7",
    ),
    "cut.mat": (lambda path: path.write_bytes(mat(inst_map=LABELS)[:200]), "damaged"),
    "rubbish.mat": (lambda path: path.write_bytes(b"x" * 300), "damaged"),
    "cut.png": (
        lambda path: (
            Image.fromarray(LARGE.astype(np.uint16)).save(path),
            path.write_bytes(path.read_bytes()[:50]),
        ),
        "damaged",
    ),
    "empty.tif": (lambda path: path.write_bytes(b""), "damaged"),
    "picture.jpg": (lambda path: path.write_bytes(b""), r"Supported: \.png"),
    "missing.png": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_label_map_is_refused(tmp_path: Path, name: str) -> None:
    write, message = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(ImageReadError, match=message) as raised:
        read_label_map(tmp_path / name)
    assert str(raised.value).startswith(str(tmp_path / name))
    if (tmp_path / name).exists():
        content = (tmp_path / name).read_bytes()
        with pytest.raises(ImageReadError, match=message) as raised:
            decode_label_map(content, f"archive.zip: {name}")
        assert str(raised.value).startswith(f"archive.zip: {name}: ")


def test_a_folder_is_not_a_label_map(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ImageReadError, match=r"a\.png: cannot be opened"):
        read_label_map(tmp_path / "a.png")


@settings(max_examples=25)
@given(
    arrays.arrays(
        np.int32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 60_000)
    )
)
def test_bytes_of_every_format_give_the_same_map(expected: np.ndarray) -> None:
    for name, content in (
        ("a.npy", npy(expected)),
        ("a.NPY", npy(np.asfortranarray(expected).astype(np.float64))),
        ("a.mat", mat(inst_map=expected)),
        ("a.Mat", mat(inst_map=expected.astype(np.float32))),
        ("a.png", png(expected.astype(np.uint16))),
        ("a.tif", tiff(expected)),
        ("a.tiff", tiff(expected.astype(np.float32))),
    ):
        np.testing.assert_array_equal(decode_label_map(content, name), expected)


def test_channels_without_alpha() -> None:
    pixels = noise(4, 5, 4)
    np.testing.assert_array_equal(decode_label_channels(png(pixels), "a"), pixels[..., :3])
    assert decode_label_channels(bmp(pixels[..., 0]), "a").shape == (4, 5, 1)


@pytest.mark.parametrize("suffix", LABEL_MAP_SUFFIXES)
def test_large_maps_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"map{suffix}"
    if suffix == ".npy":
        np.save(path, LABELS)
    elif suffix == ".mat":
        scipy.io.savemat(path, {"inst_map": LABELS})
    else:
        Image.fromarray(LABELS.astype(np.uint8)).save(path)
    assert read_label_map(path, max_pixels=12).shape == (3, 4)
    with pytest.raises(ImageReadError, match="more than the allowed 11"):
        read_label_map(path, max_pixels=11)


@pytest.mark.parametrize(
    ("highest", "stored"), [(0, np.uint16), (65_535, np.uint16), (65_536, np.int32), (2**31 - 1, np.int32)]
)
def test_ids_come_back_in_the_smallest_type(tmp_path: Path, highest: int, stored: type) -> None:
    instances = np.zeros((33, 47), dtype=np.int64)
    instances[5:9, 30:] = highest
    write_label_image(tmp_path / "a.tif", instances)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].compression.name == "ADOBE_DEFLATE"
        found = file.asarray()
    assert found.dtype == stored
    np.testing.assert_array_equal(found, instances)


def test_more_than_65535_nuclei_come_back(tmp_path: Path) -> None:
    instances = np.arange(300 * 300, dtype=np.int32).reshape(300, 300)
    write_label_image(tmp_path / "a.tif", instances)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), instances)


@pytest.mark.parametrize(
    "instances",
    [
        np.zeros((4, 5)),
        np.zeros((4, 5, 1), dtype=int),
        np.zeros((0, 5), dtype=int),
        np.full((4, 5), -1),
        np.full((4, 5), 2**31),
    ],
)
def test_what_cannot_be_stored_is_not_written(tmp_path: Path, instances: np.ndarray) -> None:
    with pytest.raises(ConfigurationError, match=r"a\.tif"):
        write_label_image(tmp_path / "a.tif", instances)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
@pytest.mark.parametrize(
    ("name", "options"), [("a.png", {}), ("a.tif", {}), ("a.tif", {"compression": "tiff_lzw"})]
)
def test_labels_are_turned_like_images(tmp_path: Path, name: str, options: dict, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(LABELS.astype(np.uint8)).save(tmp_path / name, exif=exif, **options)
    turned = {2: LABELS[:, ::-1], 3: LABELS[::-1, ::-1], 6: np.rot90(LABELS, -1), 8: np.rot90(LABELS)}
    np.testing.assert_array_equal(read_label_map(tmp_path / name), turned[orientation])
    assert (read_image(tmp_path / name)[..., 0] == turned[orientation]).all()


CLASSES = {
    "type_map": {"inst_map": LABELS, "type_map": LABELS % 2 + 1, "inst_type": np.ones((1, 1))},
    "consep": {"inst_map": LABELS, "inst_type": (np.unique(LABELS)[1:, np.newaxis] % 2 + 1).astype(float)},
    "hovernet": {
        "inst_map": LABELS,
        "inst_uid": np.unique(LABELS)[:0:-1, np.newaxis],
        "inst_type": np.unique(LABELS)[:0:-1, np.newaxis] % 2 + 1,
        "inst_centroid": np.zeros((3, 2)),
    },
    "single": {"classes": LABELS % 2 + 1, "note": "x"},
}


@pytest.mark.parametrize("form", CLASSES)
def test_classes_of_hovernets_files_are_types_and_not_ids(tmp_path: Path, form: str) -> None:
    scipy.io.savemat(tmp_path / "a.mat", CLASSES[form])
    found = read_class_map(tmp_path / "a.mat")
    np.testing.assert_array_equal(found[LABELS > 0], (LABELS % 2 + 1)[LABELS > 0])
    if form in ("consep", "hovernet"):
        assert not found[LABELS == 0].any()


def test_instances_without_classes_are_refused_as_classes(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"inst_map": LABELS})
    with pytest.raises(
        ImageReadError, match=r"a\.mat: expected 'type_map' or 'inst_map' with .*found inst_map"
    ):
        read_class_map(tmp_path / "a.mat")
    scipy.io.savemat(tmp_path / "a.mat", {"inst_map": LABELS, "inst_type": np.ones((50, 1))})
    with pytest.raises(ImageReadError, match="50 classes"):
        read_class_map(tmp_path / "a.mat")
