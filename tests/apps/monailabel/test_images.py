"""Reading regions, and label images in every format."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tifffile
from PIL import Image

from nucsam_monai.apps.monailabel.images import (
    LABEL_SUFFIXES,
    ImageOpener,
    SlideImage,
    label_suffix,
    nuclei_of_label,
    read_label,
    region_of_request,
    write_label,
)
from nucsam_monai.apps.monailabel.refusals import RequestRefusedError
from nucsam_monai.utils.errors import ImageReadError
from nucsam_monai.utils.image_source import ArrayImage, Region
from nucsam_monai.wsi.readers import OpenSlideReader

PICTURE = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_plain_images_are_read_by_region(name: str, tmp_path: Path) -> None:
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, PICTURE, photometric="rgb")
    else:
        Image.fromarray(PICTURE).save(tmp_path / name)
    source = ImageOpener(10**6).open(tmp_path / name)
    assert (source.width, source.height) == (50, 30)
    assert (source.read(Region(10, 5, 20, 7)) == PICTURE[5:12, 10:30]).all()


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    Image.new("1", (5000, 5000)).save(file)
    assert file.stat().st_size < 20_000
    with pytest.raises(ImageReadError, match="more than the allowed"):
        ImageOpener(10**6).open(file)


def test_an_image_is_decoded_once_until_it_changes(tmp_path: Path) -> None:
    file, opener = tmp_path / "a.png", ImageOpener(10**6)
    Image.fromarray(PICTURE).save(file)
    first = opener.open(file)
    assert opener.open(file).pixels is first.pixels  # type: ignore[attr-defined]
    Image.fromarray(PICTURE[:, :20]).save(file)
    assert opener.open(file).width == 20


class Scan:
    """What of OpenSlide is used: a transparent right half."""

    dimensions = (50, 30)
    level_dimensions = ((50, 30), (25, 15))
    level_downsamples = (1.0, 2.0)
    properties: ClassVar[dict[str, str]] = {}

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        step, (x, y) = 2**level, location
        pixels = np.dstack([PICTURE, np.full((30, 50, 1), 255, dtype=np.uint8)])
        pixels[:, 25:] = 0
        return Image.fromarray(pixels[y::step, x::step][: size[1], : size[0]])


class ScanReader(OpenSlideReader):
    def reopen(self) -> None:
        self._slide = Scan()


def test_slides_are_white_where_nothing_was_scanned() -> None:
    read = SlideImage(ScanReader(Path("a.svs"))).read(Region(20, 3, 10, 4))
    assert (read[:, :5] == PICTURE[3:7, 20:25]).all()
    assert (read[:, 5:] == 255).all()


def test_levels_of_slides() -> None:
    source = SlideImage(ScanReader(Path("a.svs")), level=1)
    assert (source.width, source.height, source.downsample) == (25, 15, 2.0)
    assert (source.read(Region(2, 3, 4, 5)) == PICTURE[6:16:2, 4:12:2]).all()
    assert region_of_request({"location": [20, 10], "size": [5, 4]}, source) == (10, 5, 5, 4)
    with pytest.raises(RequestRefusedError, match="level"):
        SlideImage(ScanReader(Path("a.svs")), level=2)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, (0, 0, 50, 30)),
        ({"location": [0, 0], "size": [0, 0]}, (0, 0, 50, 30)),
        ({"location": [10, 20], "size": [100, 100]}, (10, 20, 40, 10)),
        ({"location": [-5, -5], "size": [10, 10]}, (0, 0, 5, 5)),
        ({"location": [10, 20]}, (10, 20, 40, 10)),
    ],
)
def test_regions_are_cut_off_at_the_border(request_: dict, expected: tuple[int, ...]) -> None:
    assert region_of_request(request_, ArrayImage(PICTURE)) == expected


@pytest.mark.parametrize(
    "request_",
    [
        {"location": [50, 0]},
        {"location": [-50, 0], "size": [10, 10]},
        {"size": [-1, 5]},
        {"location": "0,0"},
        {"location": [0]},
        {"location": [0.5, 0]},
        {"size": [True, 1]},
        {"size": [1 << 50, 1]},
        {"location": {"x": 0, "y": 0}},
    ],
)
def test_regions_that_are_none(request_: dict) -> None:
    with pytest.raises(RequestRefusedError):
        region_of_request(request_, ArrayImage(PICTURE))


@pytest.mark.parametrize("suffix", LABEL_SUFFIXES)
def test_label_images_have_rows_as_y_and_keep_large_ids(suffix: str, tmp_path: Path) -> None:
    label_map = np.zeros((4, 7), dtype=np.int32)
    label_map[1, 5], label_map[3, 0] = 700, 2 if suffix == ".png" else 70_000
    write_label(tmp_path / f"label{suffix}", label_map)
    assert (read_label(tmp_path / f"label{suffix}", 10**6) == label_map).all()
    assert [file.name for file in tmp_path.iterdir()] == [f"label{suffix}"]


def test_the_format_of_a_label_image() -> None:
    assert label_suffix(None, 65_535) == ".png"
    assert label_suffix("", 65_536) == ".tif"
    assert label_suffix(".nrrd", 70_000) == ".nrrd"
    for wanted, ids in ((".exe", 1), (".png", 70_000), (["x"], 1), ("/../x.png", 1)):
        with pytest.raises(RequestRefusedError):
            label_suffix(wanted, ids)


@pytest.mark.parametrize("content", [b"", b"NRRD0004\n", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("suffix", [".png", ".nrrd", ".nii.gz"])
def test_damaged_label_images(content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"label{suffix}"
    file.write_bytes(content)
    with pytest.raises(ImageReadError):
        read_label(file, 10**6)


def test_a_mask_of_all_nuclei_is_taken_apart() -> None:
    mask = np.array([[1, 0, 1]], dtype=np.int32)
    assert nuclei_of_label(mask).tolist() == [[1, 0, 2]]
    assert nuclei_of_label(mask * [[3, 0, 4]]).tolist() == [[3, 0, 4]]
