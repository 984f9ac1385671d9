"""Pixels of a slide do not depend on the library or on who asks for them."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from nucsam_monai.wsi.grid import read_grid, thumbnail, working_grid
from nucsam_monai.wsi.readers import (
    ImageReader,
    OpenSlideReader,
    SlideError,
    SlideMetadataError,
    TiffSlideReader,
    mpp_of_properties,
    mpp_of_slide,
    open_slide,
)
from tests.wsi.slides import write_tiff

SIDE = 1300


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (SIDE // 4 + 1, SIDE // 4 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def test_a_pyramid_is_read_by_openslide(image: np.ndarray, tmp_path: Path) -> None:
    reader = open_slide(write_tiff(tmp_path / "a.tif", image, mpp=0.2527))
    assert isinstance(reader, OpenSlideReader)
    assert [level[:2] for level in reader.levels] == [(SIDE, SIDE), (325, 325)]
    assert mpp_of_slide(reader).value == pytest.approx(0.2527, rel=1e-3)
    np.testing.assert_array_equal(reader.read(0, 100, 200, 300, 50), image[200:250, 100:400])


def test_outside_of_a_slide_is_white(image: np.ndarray, tmp_path: Path) -> None:
    reader = open_slide(write_tiff(tmp_path / "a.tif", image))
    pixels = reader.read(0, -10, SIDE - 20, 40, 40)
    np.testing.assert_array_equal(pixels[:20, 10:], image[SIDE - 20 :, :30])
    assert (pixels[:, :10] == 255).all()
    assert (pixels[20:] == 255).all()


def test_an_ome_pyramid_is_read_with_its_levels(image: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("tiffslide")
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        options = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
        facts = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        file.write(image, subifds=1, metadata=facts, **options)  # type: ignore[arg-type]
        file.write(image[::4, ::4], subfiletype=1, **options)  # type: ignore[arg-type]
    reader = open_slide(path)
    assert isinstance(reader, TiffSlideReader)
    assert len(reader.levels) == 2
    assert mpp_of_slide(reader) == (0.5, "ome.mpp-x")
    np.testing.assert_array_equal(reader.read(0, 10, 20, 300, 200), image[20:220, 10:310])


def test_a_plain_image_is_a_slide_of_one_level(image: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(image).save(tmp_path / "a.png")
    reader = open_slide(tmp_path / "a.png")
    assert isinstance(reader, ImageReader)
    assert len(reader.levels) == 1
    np.testing.assert_array_equal(reader.read(0, 0, 0, SIDE, SIDE), image)


@pytest.mark.parametrize("mpp", [0.25, 0.13, 0.4])
def test_pixels_do_not_depend_on_the_rectangle(image: np.ndarray, mpp: float) -> None:
    reader = ImageReader(Path("a.png"), image, mpp)
    grid = working_grid(reader, mpp, 0.25)
    assert grid.resampled == (mpp != 0.25)
    whole = read_grid(reader, grid, 0, 0, grid.width, grid.height).pixels
    part = read_grid(reader, grid, 333, 77, 201, 150).pixels
    np.testing.assert_array_equal(part, whole[77:227, 333:534])


def test_a_level_within_the_tolerance_is_read_as_it_is(image: np.ndarray, tmp_path: Path) -> None:
    reader = open_slide(write_tiff(tmp_path / "a.tif", image, mpp=0.2527))
    assert working_grid(reader, 0.2527, 1.0).level == 1
    assert not working_grid(reader, 0.2527, 1.0).resampled


def test_resampled_nuclei_lie_where_they_are_on_the_slide() -> None:
    image = np.full((1200, 1200, 3), 255, dtype=np.uint8)
    image[1000:1040, 600:640] = 0
    grid = working_grid(reader := ImageReader(Path("a.png"), image, 0.125), 0.125, 0.25)
    rows, columns = np.nonzero(read_grid(reader, grid, 0, 0, 600, 600).pixels[..., 0] < 128)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (300, 319, 500, 519)
    assert grid.scale == 2


def test_a_broken_tile_loses_only_its_own_block(image: np.ndarray, tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", image, levels=1)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        at, size = page.dataoffsets[8], page.databytecounts[8]  # type: ignore[union-attr]
    with path.open("r+b") as broken:
        broken.seek(at)
        broken.write(b"\0" * size)
    reader = open_slide(path)
    read = read_grid(reader, working_grid(reader, 0.25, 0.25), 0, 0, SIDE, SIDE)
    assert read.unreadable == [(1, 0)]
    intact = np.ones((SIDE, SIDE), dtype=bool)
    intact[:512, 512:1024] = False
    np.testing.assert_array_equal(read.pixels[intact], image[intact])


def test_thumbnails_cover_the_whole_slide(image: np.ndarray) -> None:
    small = thumbnail(ImageReader(Path("a.png"), image, 0.25), 0.25, 8.0)
    assert small.shape == (41, 41, 3)
    assert abs(float(small[:40, :40].mean()) - float(image[:1280, :1280].mean())) < 1


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}, 0.25),
        (
            {"tiff.XResolution": "40000", "tiff.YResolution": "40000", "tiff.ResolutionUnit": "centimeter"},
            0.25,
        ),
        ({"tiff.XResolution": "72", "tiff.YResolution": "72", "tiff.ResolutionUnit": "inch"}, None),
        ({"tiff.XResolution": "40000", "tiff.YResolution": "40000"}, None),
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.5"}, None),
        ({"openslide.objective-power": "40"}, None),
    ],
)
def test_micrometres_per_pixel_are_read_and_never_guessed(
    properties: dict[str, str], expected: float | None
) -> None:
    found = mpp_of_properties(properties)
    assert (found.value if found else None) == (None if expected is None else pytest.approx(expected))


def test_what_cannot_be_read_is_refused_in_a_sentence(image: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no such file"):
        open_slide(tmp_path / "absent.svs")
    tifffile.imwrite(tmp_path / "deep.tif", image.astype(np.uint16), tile=(256, 256), photometric="rgb")
    with pytest.raises(SlideError, match="expected 8-bit"):
        open_slide(tmp_path / "deep.tif")
    whole = write_tiff(tmp_path / "whole.tif", image)
    (tmp_path / "cut.tif").write_bytes(whole.read_bytes()[:100])
    with pytest.raises(SlideError):
        open_slide(tmp_path / "cut.tif")
    with pytest.raises(SlideMetadataError, match=r"expected 0\.05 to 5"):
        mpp_of_slide(ImageReader(Path("a.png"), image), 40.0)
