"""Arrays of many gigabytes in ``.npy`` files, one row after another, out of a folder or an archive."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np

from nucsam_monai.data.converters.sources import Source
from nucsam_monai.utils.errors import DatasetError

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


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
            version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
            self.shape, fortran, self.dtype = _HEADERS[version](file)  # type: ignore[no-untyped-call]
        except (ValueError, KeyError) as error:
            raise DatasetError(f"{where}: not a .npy file ({error}).") from error
        if self.dtype.hasobject:
            raise DatasetError(f"{where}: holds Python objects, which are never unpickled.")
        if fortran and len(self.shape) > 1:
            raise DatasetError(f"{where}: is in Fortran order, expected C order.")
        if not self.shape:
            raise DatasetError(f"{where}: holds a single number, expected an array.")

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
