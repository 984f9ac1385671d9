"""What a ``.npy`` file says of its array, before any of it is read."""

from typing import IO, NamedTuple

import numpy as np

_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class NpyHeader(NamedTuple):
    """Shape of an array, whether it is stored in Fortran order, and the type of its elements."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def read_npy_header(file: IO[bytes]) -> NpyHeader:
    """Read the header of a ``.npy`` file and leave the file at its first element.

    Versions 1 and 2 of the format are read; a later one is only used for records with named fields.

    Raises:
        ValueError: it is no such file.
    """
    version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
    reader = _READERS.get(version)
    if reader is None:
        raise ValueError(f"version {version} of the format")
    return NpyHeader(*reader(file))  # type: ignore[no-untyped-call]
