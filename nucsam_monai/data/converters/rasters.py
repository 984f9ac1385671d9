"""Decode the image files and arrays of public datasets, and vote on the classes in them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image

from nucsam_monai.data.converters.sources import Source
from nucsam_monai.data.label_files import IMAGE_ERRORS
from nucsam_monai.io import decode_label_channels, decode_label_map
from nucsam_monai.io.label_maps import read_npy_header
from nucsam_monai.utils import label_runs
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
    image = _open_image(content, where)
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
    image = _open_image(content, where)
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
    """Decode a map of classes from the first channel of an image; the others are ignored.

    Returns:
        ``(H, W)`` of the type that is stored.

    Raises:
        DatasetError: the file is damaged, too large, or a JPEG, whose values are not exact.
    """
    with _reading_errors():
        return decode_label_channels(content, where)[..., 0]


@contextmanager
def _reading_errors() -> Iterator[None]:
    """Raise a file that cannot be read as an error of the dataset that holds it."""
    try:
        yield
    except ImageReadError as error:
        raise DatasetError(str(error)) from error


def _open_image(content: bytes, where: str) -> Image.Image:
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


def majority_values(instances: np.ndarray, values: np.ndarray, where: str) -> dict[int, int]:
    """Give every instance its class, see :func:`nucsam_monai.utils.label_runs.majority_values`.

    Args:
        instances: ``(H, W)`` non-negative integers, 0 = background.
        values: ``(H, W)`` non-negative integers, 0 = no class.
        where: name of the class map for messages.

    Returns:
        ``{instance id: value}`` for every instance.

    Raises:
        DatasetError: the maps differ in shape, or an instance has no pixel with a value.
    """
    if values.shape != instances.shape:
        raise DatasetError(f"{where}: class map is {values.shape}, instance map is {instances.shape}.")
    majority = label_runs.majority_values(instances, values)
    if without := sorted(set(np.unique(instances[instances > 0]).tolist()) - set(majority)):
        raise DatasetError(f"{where}: {len(without)} instances have no class, first {without[0]}.")
    return majority


class NpyRows:
    """Read an array of shape ``(N, ...)`` row by row, with only one row in memory.

    Attributes:
        shape: shape of the array.
        dtype: type of its elements.
    """

    def __init__(self, file: IO[bytes], where: str) -> None:
        self._file = file
        self._where = where
        try:
            self.shape, fortran, self.dtype = read_npy_header(file)
        except ValueError as error:
            raise DatasetError(f"{where}: not a .npy file ({error}).") from error
        if self.dtype.hasobject:
            raise DatasetError(f"{where}: holds Python objects, which are never unpickled.")
        if fortran and len(self.shape) > 1:
            raise DatasetError(f"{where}: is in Fortran order, expected C order.")
        if not self.shape or 0 in self.shape[1:]:
            raise DatasetError(f"{where}: has the shape {self.shape}, expected rows that are not empty.")

    def __len__(self) -> int:
        return int(self.shape[0])

    def __iter__(self) -> Iterator[np.ndarray]:
        row_shape = self.shape[1:]
        size = int(np.prod(row_shape, dtype=np.int64)) * self.dtype.itemsize
        for row in range(len(self)):
            content = self._file.read(size)
            if len(content) < size:
                raise DatasetError(
                    f"{self._where}: ends in row {row} of {len(self)}. Download the archive again."
                )
            yield np.frombuffer(content, dtype=self.dtype).reshape(row_shape)


@contextmanager
def open_npy(source: Source, name: str) -> Iterator[NpyRows]:
    """Open an array of a source.

    Raises:
        DatasetError: it is not a ``.npy`` file, is truncated, or holds Python objects.

    Example:
        >>> with open_npy(source, "Fold 1/images/fold1/images.npy") as images:  # doctest: +SKIP
        ...     for image in images:
        ...         print(image.shape)
    """
    with source.open(name) as file:
        yield NpyRows(file, source.where(name))


def rgb_row(row: np.ndarray, where: str) -> np.ndarray:
    """Turn one image of an array into the image of the dataset format.

    Args:
        row: ``(H, W, 3)`` numbers from 0 to 255 of any type; fractions are cut off, as everywhere in the field.
        where: name of the file and number of the row for messages.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        DatasetError: a value is not from 0 to 255, or all are from 0 to 1 with fractions.
    """
    lowest, highest = row.min(), row.max()
    if not (0 <= lowest <= highest <= 255):
        raise DatasetError(f"{where}: pixels from {lowest} to {highest}, expected 0 to 255.")
    pixels = row.astype(np.uint8)
    if highest <= 1 and (pixels != row).any():
        raise DatasetError(f"{where}: pixels are scaled to 0 to 1, expected 0 to 255.")
    return pixels


def ids_row(row: np.ndarray, where: str) -> np.ndarray:
    """Turn ids of any type into int32.

    Raises:
        DatasetError: a value is not a whole number from 0.
    """
    with np.errstate(invalid="ignore"):
        ids = row.astype(np.int32)
    if (ids != row).any() or ids.min(initial=0) < 0:
        raise DatasetError(f"{where}: expected ids that are whole numbers from 0 to 2^31-1.")
    return ids
