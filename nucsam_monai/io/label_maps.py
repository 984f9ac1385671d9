"""Reading label maps that any tool wrote: image, NPY or MAT files whose values are ids."""

import io
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.io.decoders import DECODER_FAILURES
from nucsam_monai.io.images import MAX_PIXELS
from nucsam_monai.io.label_decoders import (
    decode_label_image,
    decode_label_mat,
    decode_label_npy,
    decode_label_plane,
)
from nucsam_monai.utils.errors import ImageReadError

_LARGEST_ID = int(np.iinfo(np.int32).max)
_Decoder = Callable[[IO[bytes], str, int], NDArray[Any]]
_DECODERS: dict[str, _Decoder] = {
    ".png": decode_label_plane,
    ".tif": decode_label_plane,
    ".tiff": decode_label_plane,
    ".bmp": decode_label_plane,
    ".npy": decode_label_npy,
    ".mat": decode_label_mat,
}

LABEL_MAP_SUFFIXES = tuple(_DECODERS)
"""Suffixes, lower case, of the files that :func:`read_label_map` reads."""


def read_label_map(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.int32]:
    """Read a map of ids: instances, or classes per pixel.

    ====================  =====================================================================
    ``.png``, ``.bmp``    1 to 16 bits; the values of a palette image are its indices
    ``.tif``, ``.tiff``   integers of any width, or floats that hold whole numbers
    ``.npy``              likewise; files that need unpickling are refused
    ``.mat``              the variable ``inst_map``, or else the only 2-D array of numbers
    ====================  =====================================================================

    Axes of length 1 are dropped. Colour files are accepted where their channels are equal (grey saved as
    RGB); alpha is dropped.

    Args:
        path: a file with one of :data:`LABEL_MAP_SUFFIXES`.
        max_pixels: larger maps are refused before their pixels are decoded.

    Returns:
        ``(H, W)`` int32, 0 = background; the ids are those of the file.

    Raises:
        ImageReadError: the file is missing, damaged, of another type or shape, larger than ``max_pixels``, or
            has values that are no ids (fractions, negative, above 2^31 - 1).

    Example:
        >>> read_label_map("predictions/slide1.npy").max()  # doctest: +SKIP
        412
    """
    decoder = _decoder_of(str(path))
    try:
        file = Path(path).open("rb")  # noqa: SIM115
    except FileNotFoundError as error:
        raise ImageReadError(f"{path}: no such file.") from error
    except OSError as error:
        raise ImageReadError(f"{path}: cannot be opened ({error.strerror}).") from error
    with file:
        return _as_ids(_decode(decoder, file, str(path), max_pixels), str(path))


def decode_label_map(content: bytes, where: str, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.int32]:
    """Decode a map of ids that was read before, out of an archive for example; see :func:`read_label_map`.

    Args:
        content: bytes of the file.
        where: what messages call the file; it ends with the file's name, whose suffix tells the format.
        max_pixels: larger maps are refused before their pixels are decoded.

    Returns:
        ``(H, W)`` int32, 0 = background.

    Raises:
        ImageReadError: as for :func:`read_label_map`.
    """
    return _as_ids(_decode(_decoder_of(where), io.BytesIO(content), where, max_pixels), where)


def decode_label_channels(content: bytes, where: str, *, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Decode an image whose channels may differ, as :func:`decode_label_map` does not allow.

    Args:
        content: bytes of a PNG, TIFF or BMP file, whatever its name.
        where: what messages call the file.
        max_pixels: larger images are refused before their pixels are decoded.

    Returns:
        ``(H, W, C)`` of the type that is stored, without alpha; of a palette image the indices.

    Raises:
        ImageReadError: the file is damaged, of another format, or too large.
    """
    pixels = _decode(decode_label_image, io.BytesIO(content), where, max_pixels)
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels


def _decoder_of(name: str) -> _Decoder:
    suffix = PurePosixPath(name).suffix
    decoder = _DECODERS.get(suffix.lower())
    if decoder is None:
        raise ImageReadError(
            f"{name}: not a label map ('{suffix}'). Supported: {', '.join(LABEL_MAP_SUFFIXES)}."
        )
    return decoder


def _decode(decoder: _Decoder, file: IO[bytes], where: str, max_pixels: int) -> NDArray[Any]:
    try:
        return decoder(file, where, max_pixels)
    except DECODER_FAILURES as error:
        cause = (str(error).strip().splitlines() or ["no further explanation"])[-1]
        raise ImageReadError(
            f"{where}: damaged, or of another format than its name says ({type(error).__name__}: {cause}). "
            "Export it again."
        ) from error


def _as_ids(values: NDArray[Any], where: str) -> NDArray[np.int32]:
    plane = _one_channel(values, where)
    if plane.dtype.kind == "f":
        if not np.isfinite(plane).all() or (plane != np.floor(plane)).any():
            raise ImageReadError(
                f"{where}: found fractions, NaN or infinities, expected whole ids. Export ids, not probabilities."
            )
    elif plane.dtype.kind not in "iub":
        raise ImageReadError(f"{where}: expected integer ids, found values of type {plane.dtype}.")
    if plane.size and (plane.min() < 0 or plane.max() > _LARGEST_ID):
        raise ImageReadError(
            f"{where}: ids from {plane.min()} to {plane.max()}, expected 0 (background) to {_LARGEST_ID}. "
            "Number the nuclei anew."
        )
    return np.ascontiguousarray(plane, dtype=np.int32)


def _one_channel(values: NDArray[Any], where: str) -> NDArray[Any]:
    """Drop axes of length 1 and repeated channels."""
    plane = values if values.ndim == 2 else values.squeeze()
    if plane.ndim == 3 and plane.shape[-1] == 3 and (plane == plane[..., :1]).all():
        plane = plane[..., 0]
    if plane.ndim != 2:
        raise ImageReadError(
            f"{where}: expected one id per pixel (H, W), found shape {values.shape}. Colours or several maps in "
            "one file are no label map; export the instance map alone."
        )
    return plane
