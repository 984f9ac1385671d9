"""Arrays of many gigabytes in ``.npy`` files, one row after another, out of a folder or an archive."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np

from nucsam_monai.data.converters.sources import Source
from nucsam_monai.io.label_maps import read_npy_header
from nucsam_monai.utils.errors import DatasetError


class NpyRows:
    """The rows of an array of shape ``(N, ...)``, read in order; only one of them is in memory.

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
        DatasetError: it is no ``.npy`` file, is truncated, or holds Python objects.

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
