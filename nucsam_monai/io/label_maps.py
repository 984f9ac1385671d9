"""Reading label maps that any tool wrote: PNG, TIFF, NPY or MAT files whose pixel values are ids."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ImageFile, PngImagePlugin, TiffImagePlugin

from nucsam_monai.io.decoders import DECODER_FAILURES, check_pixel_count
from nucsam_monai.io.images import MAX_PIXELS
from nucsam_monai.utils.errors import ImageReadError

_LARGEST_ID = int(np.iinfo(np.int32).max)
_MAT_VARIABLE = "inst_map"  # the name in the files of HoVer-Net and of what follows its format
_MAT_NUMBERS = {
    "double",
    "single",
    "logical",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


def read_label_map(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.int32]:
    """Read a map of ids: instances, or classes per pixel.

    ====================  =====================================================================
    ``.png``              1 to 16 bits; the values of a palette image are its indices
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
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ImageReadError(
            f"{path}: not a label map ('{path.suffix}'). Supported: {', '.join(LABEL_MAP_SUFFIXES)}."
        )
    try:
        values = reader(path, max_pixels)
    except FileNotFoundError as error:
        raise ImageReadError(f"{path}: no such file.") from error
    except DECODER_FAILURES as error:
        cause = (str(error).strip().splitlines() or ["no further explanation"])[-1]
        raise ImageReadError(
            f"{path}: damaged, or not a {path.suffix} file ({type(error).__name__}: {cause}). Export it again."
        ) from error
    return _as_ids(_one_channel(values, path), path)


def _read_png(path: Path, max_pixels: int) -> NDArray[Any]:
    return _read_with_pillow(PngImagePlugin.PngImageFile, path, max_pixels)


def _read_with_pillow(plugin: type[ImageFile.ImageFile], path: Path, max_pixels: int) -> NDArray[Any]:
    with plugin(path) as image:
        check_pixel_count(path, image.width, image.height, max_pixels)
        pixels = np.array(image)
        if image.mode in ("LA", "La", "RGBA", "RGBa", "RGBX"):
            pixels = pixels[..., :-1]
        return pixels


def _read_tiff(path: Path, max_pixels: int) -> NDArray[Any]:
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        axes = dict(zip(series.axes, series.shape, strict=True))
        check_pixel_count(path, axes.get("X", 1), axes.get("Y", 1), max_pixels)
        try:
            pixels = series.asarray()
        except ValueError as error:
            # LZW, JPEG and others need a codec package; libtiff inside Pillow has them.
            if "imagecodecs" not in str(error):
                raise
            return _read_with_pillow(TiffImagePlugin.TiffImageFile, path, max_pixels)
        if "S" in axes:
            pixels = np.moveaxis(pixels, series.axes.index("S"), -1)
            return pixels[..., : axes["S"] - len(series.keyframe.extrasamples)]
        return pixels


def _read_npy(path: Path, max_pixels: int) -> NDArray[Any]:
    try:
        # mapped, so that an over-large file is refused by its header alone
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "Python objects" in str(error) or "pickle" in str(error):
            raise ImageReadError(
                f"{path}: not a plain array of numbers; it may hold pickled Python objects (a dictionary, for "
                "example), which are never loaded. Save the instance map alone with numpy.save."
            ) from error
        raise
    if not isinstance(values, np.ndarray):
        values.close()
        raise ImageReadError(
            f"{path}: an archive of arrays (.npz), expected one array. Save the map as .npy."
        )
    check_pixel_count(path, values.size, 1, max_pixels)
    return np.array(values)


def _read_mat(path: Path, max_pixels: int) -> NDArray[Any]:
    import scipy.io

    with path.open("rb") as file:
        try:
            variables = {
                name: shape
                for name, shape, kind in scipy.io.whosmat(file)
                if kind in _MAT_NUMBERS and len(shape) == 2
            }
        except NotImplementedError as error:
            raise ImageReadError(
                f"{path}: MATLAB 7.3 (HDF5), which is not supported. Save it with save(..., '-v7')."
            ) from error
        names = [_MAT_VARIABLE] if _MAT_VARIABLE in variables else list(variables)
        if len(names) != 1:
            raise ImageReadError(
                f"{path}: expected '{_MAT_VARIABLE}' or a single 2-D array of numbers, found "
                f"{', '.join(names) or 'none'}."
            )
        check_pixel_count(path, math.prod(variables[names[0]]), 1, max_pixels)
        file.seek(0)
        return scipy.io.loadmat(file, variable_names=names)[names[0]]


def _one_channel(values: NDArray[Any], path: Path) -> NDArray[Any]:
    """Drop axes of length 1 and repeated channels."""
    plane = values if values.ndim == 2 else values.squeeze()
    if plane.ndim == 3 and plane.shape[-1] == 3 and (plane == plane[..., :1]).all():
        plane = plane[..., 0]
    if plane.ndim != 2:
        raise ImageReadError(
            f"{path}: expected one id per pixel (H, W), found shape {values.shape}. Colours or several maps in one "
            "file are no label map; export the instance map alone."
        )
    return plane


def _as_ids(values: NDArray[Any], path: Path) -> NDArray[np.int32]:
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or (values != np.floor(values)).any():
            raise ImageReadError(
                f"{path}: found fractions, NaN or infinities, expected whole ids. Export ids, not probabilities."
            )
    elif values.dtype.kind not in "iub":
        raise ImageReadError(f"{path}: expected integer ids, found values of type {values.dtype}.")
    if values.size and (values.min() < 0 or values.max() > _LARGEST_ID):
        raise ImageReadError(
            f"{path}: ids from {values.min()} to {values.max()}, expected 0 (background) to {_LARGEST_ID}. "
            "Number the nuclei anew."
        )
    return np.ascontiguousarray(values, dtype=np.int32)


_READERS: dict[str, Callable[[Path, int], NDArray[Any]]] = {
    ".png": _read_png,
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".npy": _read_npy,
    ".mat": _read_mat,
}

LABEL_MAP_SUFFIXES = tuple(_READERS)
"""Suffixes, lower case, of the files that :func:`read_label_map` reads."""
