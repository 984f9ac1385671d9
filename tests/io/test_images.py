"""Images come back as they were written."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from nucsam_monai.io import SUPPORTED_SUFFIXES, read_image
from nucsam_monai.io.intensity import to_rgb_uint8
from nucsam_monai.utils.errors import ImageReadError
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
    if suffix in (".jpg", ".jpeg"):
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
    np.testing.assert_array_equal(read_image(tmp_path / "a.nrrd"), RGB)


# What becomes of values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[False, True]]), [0, 255]),
        (np.array([[3, 200]], dtype=np.int64), [3, 200]),
        (np.array([[3.4, 200.6]]), [3, 201]),
        (np.array([[0.0, 0.5, 1.0]], dtype=np.float16), [0, 128, 255]),
        (np.array([[100, 4095]], dtype=np.uint16), [0, 255]),
        (np.array([[-5, 0, 5]], dtype=np.int16), [0, 128, 255]),
        (np.array([[4000, 4000]], dtype=np.uint16), [0, 0]),
        (np.array([[0, 2**64 - 1]], dtype=np.uint64), [0, 255]),
    ],
)
def test_values_follow_the_documented_rule(values: np.ndarray, expected: list[int]) -> None:
    np.testing.assert_array_equal(to_rgb_uint8(values, "a")[0, :, 0], expected)


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
def test_values_that_are_no_image_are_refused(pixels: np.ndarray, cause: str) -> None:
    with pytest.raises(ImageReadError, match=f"a.tif.*{cause}"):
        to_rgb_uint8(pixels, "a.tif")
