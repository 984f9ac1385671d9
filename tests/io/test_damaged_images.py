"""What is no image gives one clear error."""

import gzip
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nucsam_monai.io import SUPPORTED_SUFFIXES, read_image
from nucsam_monai.utils.errors import ImageReadError
from tests.io.image_files import RGB, write


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
    "PNG named JPEG": ("a.jpg", lambda folder: bytes_of(folder, "good.png"), "JPEG, the content is PNG"),
    "JPEG named TIFF": ("a.tif", lambda folder: bytes_of(folder, "good.jpg"), "TIFF, the content is JPEG"),
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
