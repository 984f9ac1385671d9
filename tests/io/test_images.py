import gzip
import logging
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from nucsam_monai.io import (
    SUPPORTED_SUFFIXES,
    check_intensity_range,
    find_images,
    output_stems,
    read_image,
    read_image_to_segment,
    to_rgb_uint8,
)
from nucsam_monai.io.decoders import _decode_tiff_with_pillow, pillow_decoder
from nucsam_monai.utils.errors import ConfigurationError, ImageReadError
from tests.io.image_files import GREY, GREY_AS_RGB, RGB, write


@pytest.mark.parametrize("suffix", SUPPORTED_SUFFIXES)
@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
def test_every_format_comes_back_with_rows_as_y(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    path = tmp_path / f"image{suffix}"
    write(path, pixels)
    found = read_image(path)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    expected = RGB if pixels.ndim == 3 else GREY_AS_RGB
    if suffix in (".jpg", ".jpeg", ".jfif"):
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).mean() < 2
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (1, 30_000)])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".nii", ".nrrd"])
def test_thin_images(tmp_path: Path, suffix: str, shape: tuple[int, int]) -> None:
    pixels = (np.arange(shape[0] * shape[1]) % 256).astype(np.uint8).reshape(shape)
    if suffix == ".nrrd":  # by hand: ITK's Python package turns a column of pixels into a row
        header = f"NRRD0004\ntype: uint8\ndimension: 2\nsizes: {shape[1]} {shape[0]}\nencoding: raw\n\n"
        (tmp_path / "a.nrrd").write_bytes(header.encode() + pixels.tobytes())
    else:
        write(tmp_path / f"a{suffix}", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}")[..., 1], pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pillow_modes_become_rgb_and_alpha_is_dropped(tmp_path: Path, suffix: str, mode: str) -> None:
    if mode == "CMYK" and suffix == ".png":
        suffix = ".jpg"
    image = Image.fromarray(RGB).convert(mode)
    expected = np.array(image.convert("RGB"))
    if "A" in mode:
        image.putalpha(Image.fromarray(GREY))
    image.save(tmp_path / f"a{suffix}")
    found = read_image(tmp_path / f"a{suffix}")
    if suffix == ".jpg":
        assert found.shape == expected.shape
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits", "tiff_adobe_deflate"])
def test_tiff_compressions(tmp_path: Path, compression: str | None) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RGB)


@pytest.mark.parametrize(
    "options",
    [
        {"bigtiff": True},
        {"byteorder": ">"},
        {"tile": (16, 16)},
        {"planarconfig": "separate"},
        {"compression": "zlib", "predictor": True},
        {"metadata": {"axes": "YXS"}, "ome": True},
    ],
    ids=str,
)
def test_tiff_layouts(tmp_path: Path, options: dict) -> None:
    separate = options.get("planarconfig") == "separate"
    pixels = np.moveaxis(RGB, -1, 0) if separate else RGB
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RGB)


def test_tiff_with_white_as_zero(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", 255 - GREY, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), GREY_AS_RGB)


def test_tiff_of_16_bit_rgba_drops_alpha_before_the_range_is_taken(tmp_path: Path) -> None:
    pixels = np.concatenate([RGB.astype(np.uint16) * 16, np.full((7, 11, 1), 65_535, np.uint16)], axis=-1)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), to_rgb_uint8(pixels[..., :3], "a"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", {}),
        (".jpg", {"quality": 100, "subsampling": 0}),
        (".tif", {}),
        (".tif", {"compression": "tiff_lzw"}),
    ],
)
def test_exif_orientation_is_applied_once(
    tmp_path: Path, suffix: str, options: dict[str, Any], orientation: int
) -> None:
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :8], stored[8:, 16:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(stored).save(tmp_path / f"a{suffix}", exif=exif, **options)
    turned = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored),
    }[orientation]
    found = read_image(tmp_path / f"a{suffix}")
    assert found.shape == turned.shape
    np.testing.assert_allclose(found.astype(int), turned, atol=8)
    assert found.flags.c_contiguous


def test_thumbnail_after_the_image_is_ignored_and_a_stack_is_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(RGB, photometric="rgb", metadata=None)
        writer.write(RGB[::2, ::2], photometric="rgb", metadata=None)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RGB)
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([GREY] * 5), photometric="minisblack")
    with pytest.raises(ImageReadError, match=r"stack\.tif.*\(5, 7, 11\).*one plane"):
        read_image(tmp_path / "stack.tif")


def test_16_bit_grey_png_is_stretched(tmp_path: Path) -> None:
    wide = GREY.astype(np.uint16) * 16
    Image.fromarray(wide).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")[..., 0]
    assert (found.ravel()[wide.argmin()], found.ravel()[wide.argmax()]) == (0, 255)
    assert (np.diff(found.ravel()[np.argsort(wide, axis=None)].astype(int)) >= 0).all()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_one_slice_is_a_plane_and_a_volume_is_refused(tmp_path: Path, suffix: str) -> None:
    for depth in (1, 3):
        volume = np.stack([GREY] * depth)  # (z, y, x)
        if suffix.startswith(".nii"):
            import nibabel

            nibabel.save(nibabel.Nifti1Image(volume.T, np.eye(4)), tmp_path / f"{depth}{suffix}")
        else:
            import itk

            itk.imwrite(itk.image_from_array(volume), str(tmp_path / f"{depth}{suffix}"))
    np.testing.assert_array_equal(read_image(tmp_path / f"1{suffix}"), GREY_AS_RGB)
    with pytest.raises(ImageReadError, match=r"\(11, 7, 3\).*one slice"):
        read_image(tmp_path / f"3{suffix}")


def test_nifti_rgb24_and_itk_float_colour(tmp_path: Path) -> None:
    import itk
    import nibabel

    records = np.ascontiguousarray(RGB.swapaxes(0, 1)).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(records, np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii"), RGB)
    itk.imwrite(itk.image_from_array(RGB.astype(np.float32), is_vector=True), str(tmp_path / "a.nrrd"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.nrrd", intensity_range=(0, 255)), RGB)


# What becomes of values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[False, True]]), [0, 255]),
        (np.array([[3, 200]], dtype=np.uint8), [3, 200]),
        (np.array([[3, 255]], dtype=np.int64), [0, 255]),
        (np.array([[3, 256]], dtype=np.int64), [0, 255]),
        (np.array([[3.4, 200.6]]), [0, 255]),
        (np.array([[0.0, 0.5, 1.0]], dtype=np.float16), [0, 128, 255]),
        (np.array([[100, 4095]], dtype=np.uint16), [0, 255]),
        (np.array([[-5, 0, 5]], dtype=np.int16), [0, 128, 255]),
        (np.array([[4000, 4000]], dtype=np.uint16), [0, 0]),
        (np.array([[0, 2**64 - 1]], dtype=np.uint64), [0, 255]),
    ],
)
def test_values_follow_the_documented_rule(values: np.ndarray, expected: list[int]) -> None:
    np.testing.assert_array_equal(to_rgb_uint8(values, "a")[0, :, 0], expected)


def nuclei() -> np.ndarray:
    """A smooth 8-bit image that has every value from 0 to 255."""
    y, x = np.mgrid[:64, :64] / 63
    return np.rint(255 * np.stack([y * x, y, x**2], axis=-1)).astype(np.uint8)


CONTRAST = {
    "12 bits": lambda wide: wide,
    "floats in 0..1": lambda wide: wide / 4080,
    "floats up to 1.001": lambda wide: wide / 4080 * 1.001,
    "floats with an overshoot": lambda wide: wide / 4080 * 1.25 - 0.01,
    "values up to 255": lambda wide: np.rint(100 + wide / 4080 * 155).astype(np.uint16),
    "values up to 256": lambda wide: np.rint(100 + wide / 4080 * 156).astype(np.uint16),
    "a hot pixel": lambda wide: np.where(np.arange(wide.size).reshape(wide.shape) == 7, 65_535, wide),
}


@pytest.mark.parametrize("form", CONTRAST)
def test_the_same_nuclei_look_the_same_in_every_type(form: str) -> None:
    expected = nuclei().astype(int)
    found = to_rgb_uint8(CONTRAST[form](nuclei().astype(np.uint16) * 16), "a").astype(int)
    off = np.abs(found - expected)
    off.ravel()[7] = 0  # the hot pixel itself
    assert off.max() <= 3
    np.testing.assert_array_equal(to_rgb_uint8(nuclei(), "a"), nuclei())


def test_an_image_of_one_value_but_a_few_pixels_keeps_them() -> None:
    pixels = np.zeros((100, 100), np.uint16)
    pixels[5, 5] = 4000
    assert to_rgb_uint8(pixels, "a")[5, 5, 0] == 255


def test_intensity_range_is_a_straight_line_and_clips() -> None:
    pixels = np.array([[-3.0, 0, 50, 100, 400]])
    np.testing.assert_array_equal(to_rgb_uint8(pixels, "a", (0, 100))[0, :, 0], [0, 0, 128, 255, 255])
    assert check_intensity_range([0, 4095]) == (0, 4095)
    for wrong in ([1], [5, 5], "ab", 3, ["0", "1"]):
        with pytest.raises(ConfigurationError, match=r"intensity_range.*\[0, 4095\]"):
            check_intensity_range(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colours_are_the_same_from_png_and_tiff(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (20, 30, channels)).astype(np.uint16)
    in_opencv = np.dstack([pixels[..., 2::-1], pixels[..., 3:]])
    cv2.imwrite(str(tmp_path / "a.png"), in_opencv)
    cv2.imwrite(str(tmp_path / "lzw.tif"), in_opencv, [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    alpha = {} if channels == 3 else {"extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **alpha)
    expected = to_rgb_uint8(pixels[..., :3], "a")
    for name in ("a.png", "a.tif", "lzw.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), expected)
    np.testing.assert_array_equal(_decode_tiff_with_pillow(tmp_path / "lzw.tif", 10**6), pixels[..., :3])


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_colours_are_turned_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = np.arange(4 * 6 * 3, dtype=np.uint16).reshape(4, 6, 3)
    if suffix == ".tif":
        tifffile.imwrite(
            tmp_path / "a.tif", stored, photometric="rgb", extratags=[(274, "H", 1, orientation)]
        )
    else:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        content = cv2.imencode(".png", stored[..., ::-1])[1].tobytes()
        data = exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
        (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])  # behind IHDR
    turned = {3: stored[::-1, ::-1], 6: np.rot90(stored, -1), 8: np.rot90(stored)}[orientation]
    decode = _decode_tiff_with_pillow if suffix == ".tif" else pillow_decoder(PngImagePlugin.PngImageFile)
    np.testing.assert_array_equal(decode(tmp_path / f"a{suffix}", 100), turned)


@pytest.mark.parametrize("channels", [2, 4])
def test_a_channel_that_is_not_called_transparency_is_refused(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, channels), dtype=np.uint8)
    for name, photometric in (("grey.tif", "minisblack"), ("rgb.tif", "rgb"))[: channels - 1]:
        extra = ["unspecified"] * (channels - (3 if photometric == "rgb" else 1))
        tifffile.imwrite(
            tmp_path / name, pixels, photometric=photometric, planarconfig="contig", extrasamples=extra
        )
        with pytest.raises(ImageReadError, match=rf"{channels} channels.*channel of the nuclei"):
            read_image(tmp_path / name)


def test_the_folder_is_told_once_how_values_became_grey(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, GREY.astype(np.uint16) * 16)
    write(tmp_path / "c.png", GREY)
    with caplog.at_level(logging.INFO):
        for name in ("c.png", "a.tif", "b.tif"):
            read_image(tmp_path / name)
    assert [record.message.count("intensity_range") for record in caplog.records] == [1]


def test_an_image_too_large_for_the_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png_of_size(30_000, 30_000))
    monkeypatch.setattr("nucsam_monai.io.images.free_memory_bytes", lambda: 8 * 10**9)
    with pytest.raises(
        ImageReadError, match=r"30000 x 30000.*12.9 GB.*8 GB are free.*nucsam slides run.*max_pixels"
    ):
        read_image_to_segment(tmp_path / "a.png")
    write(tmp_path / "b.png", RGB)
    monkeypatch.setattr("nucsam_monai.io.images.free_memory_bytes", lambda: 0)
    assert read_image_to_segment(tmp_path / "b.png").shape == RGB.shape
    with pytest.raises(ImageReadError, match="allowed 76"):
        read_image_to_segment(tmp_path / "b.png", max_pixels=76)


@pytest.mark.parametrize(
    ("pixels", "cause"),
    [
        (np.array([[0.0, np.nan]]), "1 of 2 values are NaN"),
        (np.array([[np.inf, 1.0]]), "infinite"),
        (np.array([[-1e308, 1e308]]), "light intensities"),
        (np.array([[1j]]), "complex"),
        (np.array([["a"]]), "type"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
    ],
)
def test_values_that_are_not_an_image_are_refused(pixels: np.ndarray, cause: str) -> None:
    with pytest.raises(ImageReadError, match=f"a.tif.*{cause}"):
        to_rgb_uint8(pixels, "a.tif")


def test_images_of_a_folder_are_sorted_and_others_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b.PNG", "a.nii.gz", "c.tif", ".hidden.png", "notes.txt", "d.gz", "raw.gif", "e.GIF"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in find_images(tmp_path)] == ["a.nii.gz", "b.PNG", "c.tif"]
    assert caplog.messages == [
        f"{tmp_path}: skipped 4 files that are not supported images: 2 .gif, 1 .gz, 1 .txt"
    ]
    assert find_images(str(tmp_path / "c.tif")) == [tmp_path / "c.tif"]


def test_nothing_found_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="no such file or folder"):
        find_images(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ImageReadError, match=r"no image in this folder.*\.nii\.gz"):
        find_images(tmp_path)
    with pytest.raises(ImageReadError, match=r"notes\.txt.*not a supported image"):
        find_images(tmp_path / "notes.txt")


def test_stems_differ_where_names_would_collide() -> None:
    stems = output_stems(["x/a.png", "x/a.tif", "y/a.png", "x/A_PNG.jpg", "b.nii.gz", "c.d.png", "b2.nii"])
    assert {str(path): stem for path, stem in stems.items()} == {
        "x/a.png": "a_png_2",
        "x/a.tif": "a_tif",
        "y/a.png": "a_png_3",
        "x/A_PNG.jpg": "A_PNG",
        "b.nii.gz": "b",
        "c.d.png": "c.d",
        "b2.nii": "b2",
    }


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            "{}{}{}".format,
            st.sampled_from(["a", "A", "b"]),
            st.sampled_from(["", "_png", "_png_2"]),
            st.sampled_from([".png", ".tif", ".nii.gz"]),
        )
    )
)
def test_stems_are_unique_whatever_the_case(names: list[str]) -> None:
    stems = output_stems(names)
    assert set(stems) == {Path(name) for name in names}
    assert len({stem.casefold() for stem in stems.values()}) == len(stems)


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


def bytes_of(folder: Path, name: str, pixels: np.ndarray = RGB) -> bytes:
    write(folder / name, pixels)
    return (folder / name).read_bytes()


BAD_IMAGES = {
    **{f"empty file {suffix}": (f"a{suffix}", lambda _: b"", "empty") for suffix in SUPPORTED_SUFFIXES},
    **{
        f"text {suffix}": (f"a{suffix}", lambda _: b"<html>404 not found</html>", "MetaImage|not a")
        for suffix in SUPPORTED_SUFFIXES
    },
    **{
        f"truncated {suffix}": (
            f"a{suffix}",
            lambda folder, suffix=suffix: (content := bytes_of(folder, f"good{suffix}"))[
                : int(len(content) * 0.8)
            ],
            "damaged",
        )
        for suffix in (".png", ".jpg", ".bmp", ".tif", ".nii", ".nii.gz", ".nrrd", ".mha")
    },
    **{
        f"only the first bytes {suffix}": (
            f"a{suffix}",
            lambda folder, suffix=suffix: bytes_of(folder, f"good{suffix}")[:9],
            "damaged|neither",
        )
        for suffix in (".png", ".jpg", ".bmp", ".tif", ".nii", ".nii.gz", ".nrrd", ".mha")
    },
    "PNG named NRRD": ("a.nrrd", lambda folder: bytes_of(folder, "good.png"), "NRRD, the content is PNG"),
    "NRRD named TIFF": ("a.tif", lambda folder: bytes_of(folder, "good.nrrd"), "TIFF, the content is NRRD"),
    "NRRD named MetaImage": ("a.mha", lambda folder: bytes_of(folder, "good.nrrd"), "the content is NRRD"),
    "gzip of text": ("a.nii.gz", lambda _: gzip.compress(b"text" * 200), "damaged"),
    "unsupported": ("a.gif", lambda _: b"GIF89a", "not a supported image"),
    "no suffix": ("a", lambda _: b"x", "not a supported image"),
    "only a suffix": (".png", lambda _: b"x", "not a supported image"),
    "PNG bomb": ("a.png", lambda _: png_of_size(100_000, 100_000), "100000 x 100000 pixels.*max_pixels"),
    "damaged PNG data": (
        "a.png",
        lambda folder: bytes_of(folder, "good.png").replace(b"IDAT", b"IDAX"),
        "damaged",
    ),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_image_gives_one_error_with_path_and_cause(tmp_path: Path, case: str) -> None:
    name, content, cause = BAD_IMAGES[case]
    good = tmp_path / "good"
    good.mkdir()
    (tmp_path / name).write_bytes(content(good))
    with pytest.raises(ImageReadError, match=cause) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
def test_images_are_read_under_each_others_suffixes(tmp_path: Path, suffix: str) -> None:
    for source in {".png", ".tif", ".bmp", ".webp"} - {suffix}:
        (tmp_path / f"a{suffix}").write_bytes(bytes_of(tmp_path, f"good{source}"))
        np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), RGB)


@pytest.mark.parametrize(("name", "package"), [("a.nii.gz", "nibabel"), ("a.nrrd", "itk"), ("a.mha", "itk")])
def test_a_format_whose_package_is_missing_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    write(tmp_path / name, RGB)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImageReadError, match=rf"{name}: .*{package}.*pip install 'nucsam-monai\[formats\]'"):
        read_image(tmp_path / name)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="No such file"):
        read_image(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(ImageReadError, match="directory"):
        read_image(tmp_path / "b.png")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".nii.gz", ".mha"])
def test_limit_of_pixels_is_kept_in_every_decoder(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a{suffix}", RGB)
    assert read_image(tmp_path / f"a{suffix}", max_pixels=77).shape == (7, 11, 3)
    with pytest.raises(ImageReadError, match="11 x 7 pixels"):
        read_image(tmp_path / f"a{suffix}", max_pixels=76)


def test_large_images_do_not_meet_the_limit_of_pillow(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    write(tmp_path / "a.png", RGB)
    assert read_image(tmp_path / "a.png").shape == RGB.shape


def complaint_about(path: Path) -> str | None:
    """Message of the one permitted error, or None where the file is read after all."""
    try:
        image = read_image(path, max_pixels=10**6)
    except ImageReadError as error:
        return str(error)
    assert image.ndim == 3
    return None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from([".png", ".jpg", ".bmp", ".tif", ".nii", ".nii.gz", ".nrrd"]),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_bytes_give_an_image_or_one_error(tmp_path: Path, suffix: str, damage) -> None:
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    good = tmp_path / f"good{suffix}"
    if not good.exists():
        write(good, RGB)
    content = bytearray(good.read_bytes())
    for position, value in damage:
        content[position % min(len(content), 400)] = value
    (tmp_path / f"a{suffix}").write_bytes(content)
    complaint = complaint_about(tmp_path / f"a{suffix}")
    assert complaint is None or f"a{suffix}" in complaint
