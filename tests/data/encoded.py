"""Arrays as the bytes of files."""

import io

import numpy as np
from PIL import Image
from scipy.io import savemat


def bmp(pixels: np.ndarray) -> bytes:
    return _image(pixels, "BMP")


def jpeg(pixels: np.ndarray) -> bytes:
    return _image(pixels, "JPEG")


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=array.dtype.hasobject)
    return buffer.getvalue()


def mat(**variables: object) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables)
    return buffer.getvalue()


def labels(shape: tuple[int, int], *ids: int) -> np.ndarray:
    """One square of 3 x 3 pixels per id, side by side; int32."""
    instances = np.zeros(shape, dtype=np.int32)
    for position, instance_id in enumerate(ids):
        instances[1:4, 1 + 4 * position : 4 + 4 * position] = instance_id
    return instances


def _image(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()
