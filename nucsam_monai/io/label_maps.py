"""Read label maps of any tool (image, NPY or MAT files whose pixel values are ids), and write label images."""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import BmpImagePlugin, ExifTags, ImageFile, ImageOps, PngImagePlugin, TiffImagePlugin

from nucsam_monai.io.decoders import DECODER_FAILURES, check_pixel_count, upright
from nucsam_monai.io.images import MAX_PIXELS, content_format
from nucsam_monai.utils.errors import ConfigurationError, ImageReadError
from nucsam_monai.utils.files import atomic_path

_LARGEST_ID = int(np.iinfo(np.int32).max)
_Decoder = Callable[[IO[bytes], str, int], NDArray[Any]]
_PILLOW_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa", "RGBX"}
# Names in the files of HoVer-Net, of CoNSeP, and of what follows their format; the first that are all there are read.
_MAT_INSTANCES = (("inst_map",),)
_MAT_CLASSES = (("type_map",), ("inst_map", "inst_type", "inst_uid"), ("inst_map", "inst_type"))
_MAT_NUMBERS = {
    "double",
    "single",
    "logical",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}
_NPY_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class _NpyHeader(NamedTuple):
    """Hold the header of an array: its shape, whether it is in Fortran order, and its type."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def read_npy_header(file: IO[bytes]) -> _NpyHeader:
    """Read the header of a ``.npy`` file and leave the file position at its first element.

    Versions 1 and 2 of the format are read; NumPy writes version 3 only for records with named fields.

    Raises:
        ValueError: the file is not a ``.npy`` file of version 1 or 2.
    """
    version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
    reader = _NPY_HEADER_READERS.get(version)
    if reader is None:
        raise ValueError(f"version {version} of the format")
    return _NpyHeader(*reader(file))  # type: ignore[no-untyped-call]


def _decode_image(file: IO[bytes], where: str, max_pixels: int) -> NDArray[Any]:
    """Decode a PNG, TIFF or BMP image, recognised by its content; public datasets have misnamed files.

    Returns:
        ``(H, W)`` or ``(H, W, C)`` without alpha; the indices of a palette image.

    Raises:
        ImageReadError: the file has another format (for example JPEG) or is too large.
    """
    start = file.read(8)
    file.seek(0)
    found = content_format(start)
    if found == "TIFF":
        return _decode_tiff(file, where, max_pixels)
    if found in _PILLOW_PLUGINS:
        return _decode_with_pillow(_PILLOW_PLUGINS[found], file, where, max_pixels)
    if found == "JPEG":
        raise ImageReadError(f"{where}: a JPEG, which changes ids. Export the label map as PNG or TIFF.")
    raise ImageReadError(
        f"{where}: damaged, or not a PNG, TIFF or BMP image (first bytes: {start.hex() or 'none'}). Export it again."
    )


def _decode_plane(file: IO[bytes], where: str, max_pixels: int) -> NDArray[Any]:
    """Decode a grey image like :func:`_decode_image`, also if it was saved as RGB with equal channels.

    Returns:
        ``(H, W)``.

    Raises:
        ImageReadError: as for :func:`_decode_image`, or the channels differ.
    """
    pixels = _decode_image(file, where, max_pixels)
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise ImageReadError(
                f"{where}: expected one id per pixel (H, W), found colours of shape {pixels.shape}. "
                "Export the instance map alone, without colours."
            )
        return pixels[..., 0]
    return pixels


def _decode_npy(file: IO[bytes], where: str, max_pixels: int) -> NDArray[Any]:
    """Decode a ``.npy`` file of numbers; nothing is unpickled.

    Raises:
        ImageReadError: the file holds no array of numbers, or it is too large.
    """
    if file.read(2) == b"PK":
        raise ImageReadError(
            f"{where}: an archive of arrays (.npz), expected one array. Save the map as .npy."
        )
    file.seek(0)
    try:
        header = read_npy_header(file)
    except ValueError as error:
        raise ImageReadError(f"{where}: not a .npy file ({error}). Save the map with numpy.save.") from error
    if header.dtype.hasobject:
        raise ImageReadError(
            f"{where}: holds pickled Python objects (a dictionary, for example), which are never loaded. "
            "Save the instance map alone with numpy.save."
        )
    check_pixel_count(where, math.prod(header.shape), 1, max_pixels)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)  # type: ignore[no-untyped-call]


def _decode_mat(file: IO[bytes], where: str, max_pixels: int) -> NDArray[Any]:
    """Decode the variable ``inst_map`` of a MATLAB file, or else its only 2-D array of numbers.

    Raises:
        ImageReadError: the file has no such array, the array is too large, or the file has version 7.3.
    """
    return next(iter(_read_mat(file, where, max_pixels, _MAT_INSTANCES).values()))


def _decode_class_mat(file: IO[bytes], where: str, max_pixels: int) -> NDArray[Any]:
    """Decode ``type_map``, or paint ``inst_map`` with ``inst_type``, or decode the only 2-D array of numbers.

    Raises:
        ImageReadError: as :func:`_decode_mat`, or ``inst_type`` does not have one class for each instance.
    """
    found = _read_mat(file, where, max_pixels, _MAT_CLASSES)
    if "inst_type" not in found:
        return next(iter(found.values()))
    instances, types = found["inst_map"], found["inst_type"].ravel()
    ids = np.unique(instances[instances != 0])
    listed = found["inst_uid"].ravel() if "inst_uid" in found else ids
    order = np.argsort(listed)
    if len(types) != len(listed) or not np.isin(ids, listed).all():
        raise ImageReadError(
            f"{where}: inst_map has {len(ids)} instances, inst_type {len(types)} classes. Export the file again."
        )
    of_id = dict(zip(listed[order].tolist(), types[order].tolist(), strict=True))
    classes = np.array([0, *(of_id[number] for number in ids.tolist())])
    return classes[np.searchsorted(ids, instances, side="right")]


def _read_mat(
    file: IO[bytes], where: str, max_pixels: int, choices: Sequence[tuple[str, ...]]
) -> dict[str, NDArray[Any]]:
    """Read the variables of the first of ``choices`` that a MATLAB file has, or else its only 2-D array of numbers."""
    import scipy.io
    from scipy.io.matlab import MatReadError

    try:
        variables = {
            name: shape
            for name, shape, kind in scipy.io.whosmat(file)
            if kind in _MAT_NUMBERS and len(shape) == 2
        }
        fallback = tuple(variables) if len(variables) == 1 and variables.keys() != {"inst_map"} else ()
        names = next((names for names in choices if variables.keys() >= set(names)), fallback)
        if not names:
            choices_text = " or ".join(" with ".join(f"'{name}'" for name in names) for names in choices)
            raise ImageReadError(
                f"{where}: expected {choices_text} or a single 2-D array of numbers, found "
                f"{', '.join(variables) or 'none'}."
            )
        for name in names:
            check_pixel_count(where, math.prod(variables[name]), 1, max_pixels)
        file.seek(0)
        content = scipy.io.loadmat(file, variable_names=list(names))
        return {name: content[name] for name in names}
    except NotImplementedError as error:
        raise ImageReadError(
            f"{where}: MATLAB 7.3 (HDF5), which is not supported. Save it with save(..., '-v7')."
        ) from error
    except MatReadError as error:
        raise ValueError(str(error)) from error


def _decode_with_pillow(
    plugin: type[ImageFile.ImageFile], file: IO[bytes], where: str, max_pixels: int
) -> NDArray[Any]:
    with plugin(file) as image:
        check_pixel_count(where, image.width, image.height, max_pixels)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # Pillow turns TIFF itself and takes the tag away
        pixels = np.array(image)
        return pixels[..., :-1] if image.mode in _ALPHA_MODES else pixels


def _decode_tiff(file: IO[bytes], where: str, max_pixels: int) -> NDArray[Any]:
    with tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        axes = dict(zip(series.axes, series.shape, strict=True))
        if not {"Y", "X"} <= set(axes) <= {"Y", "X", "S"}:
            raise ImageReadError(
                f"{where}: expected one id per pixel (H, W), found axes {series.axes} of sizes {series.shape}. "
                "Export the instance map alone."
            )
        check_pixel_count(where, axes.get("X", 1), axes.get("Y", 1), max_pixels)
        try:
            pixels = series.asarray()
        except ValueError as error:
            # LZW, JPEG and others need a codec package; libtiff inside Pillow has them.
            if "imagecodecs" not in str(error):
                raise
        else:
            if "S" in axes:
                pixels = np.moveaxis(pixels, series.axes.index("S"), -1)
                pixels = pixels[..., : axes["S"] - len(series.keyframe.extrasamples)]
            tag = series.keyframe.tags.get(ExifTags.Base.Orientation)
            return upright(pixels, int(tag.value) if tag else 1)
    file.seek(0)
    return _decode_with_pillow(TiffImagePlugin.TiffImageFile, file, where, max_pixels)


_DECODERS: dict[str, _Decoder] = {
    ".png": _decode_plane,
    ".tif": _decode_plane,
    ".tiff": _decode_plane,
    ".bmp": _decode_plane,
    ".npy": _decode_npy,
    ".mat": _decode_mat,
}

LABEL_MAP_SUFFIXES = tuple(_DECODERS)
"""Suffixes, lower case, of the files that :func:`read_label_map` reads."""


def read_label_map(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.int32]:
    """Read a label map, in which every nucleus has its own id.

    - ``.png``, ``.bmp``: 1 to 16 bits; the values of a palette image are its indices
    - ``.tif``, ``.tiff``: integers of any width, or floats that are whole numbers
    - ``.npy``: as TIFF; files that need unpickling raise
    - ``.mat``: the variable ``inst_map``, or else the only 2-D array of numbers

    Axes of length 1 are dropped, and an EXIF orientation is applied. Colour images are accepted if their channels are
    equal (grey saved as RGB); alpha is dropped.

    Args:
        path: file with one of :data:`LABEL_MAP_SUFFIXES`.
        max_pixels: largest number of pixels; larger maps raise before they are decoded.

    Returns:
        ``(H, W)`` int32 with the ids of the file, 0 = background.

    Raises:
        ImageReadError: the file is missing or damaged, has another type or shape, has more than ``max_pixels``, or
            has values that are not ids (fractions, negative numbers, numbers above 2^31 - 1).

    Example:
        >>> read_label_map("predictions/slide1.npy").max()  # doctest: +SKIP
        412
    """
    return _read(path, _decoder_of(str(path)), max_pixels)


def read_class_map(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.int32]:
    """Read the class of every pixel from a file in one of the formats of :func:`read_label_map`.

    In a ``.mat`` file it is the variable ``type_map``, or ``inst_map`` with the classes in ``inst_type`` (HoVer-Net's
    layout), or else the only 2-D array of numbers.

    Args:
        path: file with one of :data:`LABEL_MAP_SUFFIXES`.
        max_pixels: largest number of pixels; larger maps raise before they are decoded.

    Returns:
        ``(H, W)`` int32, 0 = no class.

    Raises:
        ImageReadError: as for :func:`read_label_map`, or a ``.mat`` file has nuclei without a class.
    """
    decoder = _decoder_of(str(path))
    return _read(path, _decode_class_mat if decoder is _decode_mat else decoder, max_pixels)


def _read(path: Path | str, decoder: _Decoder, max_pixels: int) -> NDArray[np.int32]:
    try:
        file = Path(path).open("rb")  # noqa: SIM115
    except FileNotFoundError as error:
        raise ImageReadError(f"{path}: no such file.") from error
    except OSError as error:
        raise ImageReadError(f"{path}: cannot be opened ({error.strerror}).") from error
    with file:
        return _as_ids(_decode(decoder, file, str(path), max_pixels), str(path))


def decode_label_map(content: bytes, where: str, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.int32]:
    """Decode a label map that is already in memory, for example from an archive; see :func:`read_label_map`.

    Args:
        content: bytes of the file.
        where: how error messages name the file; its suffix determines the format.
        max_pixels: largest number of pixels; larger maps raise before they are decoded.

    Returns:
        ``(H, W)`` int32, 0 = background.

    Raises:
        ImageReadError: as for :func:`read_label_map`.
    """
    return _as_ids(_decode(_decoder_of(where), io.BytesIO(content), where, max_pixels), where)


def decode_label_channels(content: bytes, where: str, *, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Decode a label image with several channels that may differ, for example one channel per class.

    Args:
        content: bytes of a PNG, TIFF or BMP file.
        where: how error messages name the file.
        max_pixels: largest number of pixels; larger images raise before they are decoded.

    Returns:
        ``(H, W, C)`` in the file's own type, without alpha; the indices of a palette image.

    Raises:
        ImageReadError: the file is damaged, has another format, or is too large.
    """
    pixels = _decode(_decode_image, io.BytesIO(content), where, max_pixels)
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels


def write_label_image(path: Path | str, instances: np.ndarray) -> None:
    """Write a label map as zlib-compressed TIFF: uint16, or int32 if an id is larger than 65535.

    Args:
        path: ``.tif`` file; written completely or not at all.
        instances: ``(H, W)`` integers, 0 = background.

    Raises:
        ConfigurationError: the map has another shape or type, no pixels, or ids outside 0..2^31 - 1.
    """
    if instances.ndim != 2 or not np.issubdtype(instances.dtype, np.integer) or instances.size == 0:
        raise ConfigurationError(
            f"{path}: expected a (H, W) map of integers, found shape {instances.shape} of {instances.dtype}."
        )
    lowest, highest = int(instances.min()), int(instances.max())
    if lowest < 0 or highest > _LARGEST_ID:
        raise ConfigurationError(f"{path}: ids from {lowest} to {highest}, expected 0 to {_LARGEST_ID}.")
    stored_type = np.uint16 if highest <= np.iinfo(np.uint16).max else np.int32
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            instances.astype(stored_type, copy=False),
            photometric="minisblack",
            compression="zlib",
            metadata=None,
        )


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
            "Renumber the nuclei."
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
            "one file are not a label map; export the instance map alone."
        )
    return plane
