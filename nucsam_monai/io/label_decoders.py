"""Decoders of label maps: each returns the values of a file as they are stored."""

import math
from typing import IO, Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import BmpImagePlugin, ImageFile, PngImagePlugin, TiffImagePlugin

from nucsam_monai.io.decoders import check_pixel_count
from nucsam_monai.io.images import content_format
from nucsam_monai.utils.errors import ImageReadError
from nucsam_monai.utils.npy import read_npy_header

_PILLOW_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa", "RGBX"}
_MAT_VARIABLE = "inst_map"  # the name in the files of HoVer-Net and of what follows its format
_MAT_NUMBERS = {
    "double",
    "single",
    "logical",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


def decode_label_image(file: IO[bytes], where: str, max_pixels: int) -> NDArray[Any]:
    """Decode a PNG, TIFF or BMP image, told by its content; public datasets have misnamed files.

    Returns:
        ``(H, W)`` or ``(H, W, C)`` without alpha; of a palette image the indices.

    Raises:
        ImageReadError: it is another kind of file, a JPEG in particular, or too large.
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


def decode_label_plane(file: IO[bytes], where: str, max_pixels: int) -> NDArray[Any]:
    """Decode an image like :func:`decode_label_image` whose channels are all the same: grey saved as RGB.

    Returns:
        ``(H, W)``.

    Raises:
        ImageReadError: as there, or the channels differ.
    """
    pixels = decode_label_image(file, where, max_pixels)
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise ImageReadError(
                f"{where}: expected one id per pixel (H, W), found colours of shape {pixels.shape}. "
                "Export the instance map alone, without colours."
            )
        return pixels[..., 0]
    return pixels


def decode_label_npy(file: IO[bytes], where: str, max_pixels: int) -> NDArray[Any]:
    """Decode an array of numbers; nothing is unpickled.

    Raises:
        ImageReadError: it is no such array, or too large.
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


def decode_label_mat(file: IO[bytes], where: str, max_pixels: int) -> NDArray[Any]:
    """Decode the variable ``inst_map``, or else the only 2-D array of numbers, of a MATLAB file.

    Raises:
        ImageReadError: there is no such array, it is too large, or the file is of version 7.3.
    """
    import scipy.io
    from scipy.io.matlab import MatReadError

    try:
        variables = {
            name: shape
            for name, shape, kind in scipy.io.whosmat(file)
            if kind in _MAT_NUMBERS and len(shape) == 2
        }
        names = [_MAT_VARIABLE] if _MAT_VARIABLE in variables else list(variables)
        if len(names) != 1:
            raise ImageReadError(
                f"{where}: expected '{_MAT_VARIABLE}' or a single 2-D array of numbers, found "
                f"{', '.join(names) or 'none'}."
            )
        check_pixel_count(where, math.prod(variables[names[0]]), 1, max_pixels)
        file.seek(0)
        return scipy.io.loadmat(file, variable_names=names)[names[0]]
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
            if "S" not in axes:
                return pixels
            pixels = np.moveaxis(pixels, series.axes.index("S"), -1)
            return pixels[..., : axes["S"] - len(series.keyframe.extrasamples)]
    file.seek(0)
    return _decode_with_pillow(TiffImagePlugin.TiffImageFile, file, where, max_pixels)
