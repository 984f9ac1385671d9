import io

import numpy as np
import pytest
from PIL import Image

from nucsam_monai.data.converters.rasters import decode_first_channel, decode_labels, decode_mask, decode_rgb
from nucsam_monai.utils.errors import DatasetError
from tests.data.originals import noise, png


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
