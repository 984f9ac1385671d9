"""Decoding label maps as datasets distribute them: ``.npy``, ``.mat``, PNG, TIFF and BMP of any channels."""

import io
import zlib

import numpy as np
from scipy.io import loadmat, whosmat
from scipy.io.matlab import MatReadError

from nucsam_monai.data.converters.rasters import open_image
from nucsam_monai.utils.errors import DatasetError

INSTANCE_MAP_VARIABLE = "inst_map"
"""What the public ``.mat`` files call their instance map."""

_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_MAX_ID = int(np.iinfo(np.int32).max)
_BAD_NPY = (ValueError, EOFError, OSError, MemoryError)
_BAD_MAT = (
    *_BAD_NPY,
    MatReadError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    UnicodeDecodeError,
    zlib.error,
)


def decode_label_file(content: bytes, name: str, where: str) -> np.ndarray:
    """Decode a label map by the suffix of its name: ``.npy``, ``.mat``, or else an image.

    Args:
        content: bytes of the file.
        name: name of the file.
        where: name of the file for messages.

    Returns:
        ``(H, W)`` int32, 0 = background.

    Raises:
        DatasetError: the file is damaged or no label map.
    """
    suffix = name.lower().rpartition(".")[2]
    if suffix == "npy":
        return decode_npy_labels(content, where)
    if suffix == "mat":
        return decode_mat_labels(content, where)
    return decode_grey_labels(content, where)


def decode_npy_labels(content: bytes, where: str) -> np.ndarray:
    """Decode the label map of a ``.npy`` file; nothing is unpickled.

    Returns:
        ``(H, W)`` int32.

    Raises:
        DatasetError: the file is damaged, holds Python objects, or is no label map.
    """
    try:
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except _BAD_NPY as error:
        raise DatasetError(f"{where}: not a .npy file of numbers ({error}).") from error
    return as_label_map(array, where)


def decode_mat_labels(content: bytes, where: str) -> np.ndarray:
    """Decode the variable ``inst_map`` of a ``.mat`` file up to version 7.

    Returns:
        ``(H, W)`` int32.

    Raises:
        DatasetError: the file is damaged, of version 7.3, without that variable, or it is no label map.
    """
    try:
        found = loadmat(io.BytesIO(content), variable_names=[INSTANCE_MAP_VARIABLE])
        names = [name for name, _, _ in whosmat(io.BytesIO(content))]
    except NotImplementedError as error:
        raise DatasetError(
            f"{where}: .mat file of version 7.3, expected version 7 or lower; save it with '-v7' in MATLAB."
        ) from error
    except _BAD_MAT as error:
        raise DatasetError(f"{where}: not a .mat file ({error}).") from error
    if INSTANCE_MAP_VARIABLE not in found:
        raise DatasetError(
            f"{where}: no variable '{INSTANCE_MAP_VARIABLE}', it has {', '.join(names) or 'none'}."
        )
    return as_label_map(found[INSTANCE_MAP_VARIABLE], where)


def decode_grey_labels(content: bytes, where: str) -> np.ndarray:
    """Decode a label map from an image of one channel, or of several that are equal; alpha is dropped.

    Returns:
        ``(H, W)`` int32.

    Raises:
        DatasetError: the file is damaged, a JPEG, coloured, or no label map.
    """
    channels = decode_label_channels(content, where)
    if (channels != channels[..., :1]).any():
        raise DatasetError(f"{where}: a label map in colours, expected ids in one channel.")
    return as_label_map(channels[..., 0], where)


def decode_label_channels(content: bytes, where: str) -> np.ndarray:
    """Decode an image that holds ids or classes with all its channels but alpha.

    Returns:
        ``(H, W, C)`` of the type that is stored; of a palette image the indices.

    Raises:
        DatasetError: the file is damaged, or a JPEG, whose values are not exact.
    """
    image = open_image(content, where)
    if image.format == "JPEG":
        raise DatasetError(f"{where}: a JPEG, which changes ids; expected a lossless format.")
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return pixels[..., None]
    return pixels[..., :-1] if image.mode in _ALPHA_MODES else pixels


def as_label_map(array: np.ndarray, where: str) -> np.ndarray:
    """Return an array of ids as int32; floating point numbers must be whole.

    Args:
        array: ``(H, W)`` booleans, integers or floats from 0 to 2^31-1.
        where: what an error message calls it.

    Raises:
        DatasetError: the array has another shape, type or range.
    """
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "buif":
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DatasetError(f"{where}: expected a label map (H, W) of numbers, found {found}.")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise DatasetError(f"{where}: ids are not whole numbers.")
    if array.size and (array.min() < 0 or array.max() > _MAX_ID):
        raise DatasetError(f"{where}: ids from {array.min()} to {array.max()}, expected 0 to 2^31-1.")
    return array.astype(np.int32)
