"""Decoding the image files of public datasets to the arrays of the dataset format."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from nucsam_monai.data.label_files import IMAGE_ERRORS
from nucsam_monai.io import decode_label_channels, decode_label_map
from nucsam_monai.utils.errors import DatasetError, ImageReadError

_COLOUR_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_ALPHA_CHANNELS = {"LA", "RGBA"}


def decode_rgb(content: bytes, where: str) -> np.ndarray:
    """Decode an image file of 8 bits per channel; alpha is dropped, grey is repeated, palettes are looked up.

    Args:
        content: bytes of a PNG, TIFF, BMP or JPEG file.
        where: name of the file for messages.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        DatasetError: the file is damaged, too large, or has more than 8 bits per channel.
    """
    image = open_image(content, where)
    if image.mode not in _COLOUR_MODES:
        raise DatasetError(f"{where}: image of mode {image.mode}, expected 8 bits per channel.")
    # Through RGBA, because a palette with transparency has no direct way to RGB; the colours stay as stored.
    return (
        np.array(image.convert("RGBA"))[..., :3]
        if image.mode in {"P", "PA"}
        else np.array(image.convert("RGB"))
    )


def decode_mask(content: bytes, where: str) -> np.ndarray:
    """Decode a binary mask: a pixel is set where any colour channel, not alpha, is above 0.

    Returns:
        ``(H, W)`` bool.

    Raises:
        DatasetError: the file is damaged or too large.
    """
    image = open_image(content, where)
    if image.mode in {"P", "PA"}:
        image = image.convert("RGBA")
    pixels = np.asarray(image)
    if image.mode in _ALPHA_CHANNELS:
        pixels = pixels[..., :-1]
    return np.asarray(pixels.any(axis=2) if pixels.ndim == 3 else pixels > 0)


def decode_labels(content: bytes, where: str) -> np.ndarray:
    """Decode a map of ids or classes, see :func:`nucsam_monai.io.decode_label_map`.

    Args:
        content: bytes of an image, ``.npy`` or ``.mat`` file.
        where: name of the file for messages, with its suffix.

    Returns:
        ``(H, W)`` int32.

    Raises:
        DatasetError: the file is damaged, too large, or no label map.
    """
    with _reading_errors():
        return decode_label_map(content, where)


def decode_first_channel(content: bytes, where: str) -> np.ndarray:
    """Decode a map of classes from an image of which only the first channel counts.

    Returns:
        ``(H, W)`` of the type that is stored.

    Raises:
        DatasetError: the file is damaged, too large, or a JPEG, whose values are not exact.
    """
    with _reading_errors():
        return decode_label_channels(content, where)[..., 0]


@contextmanager
def _reading_errors() -> Iterator[None]:
    """A file that cannot be read is, in an archive of a dataset, an error of that dataset."""
    try:
        yield
    except ImageReadError as error:
        raise DatasetError(str(error)) from error


def open_image(content: bytes, where: str) -> Image.Image:
    """Decode an image file whatever its suffix says, with its pixels loaded.

    Raises:
        DatasetError: the file is damaged or too large.
    """
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except IMAGE_ERRORS as error:
        raise DatasetError(f"{where}: not a readable image ({error}).") from error
    return image
