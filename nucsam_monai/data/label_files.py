"""Read and write the three files of one sample: image, instance map and classes."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from nucsam_monai.utils.errors import DatasetError

IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for damaged files and for decompression bombs."""

_UINT16_MAX = int(np.iinfo(np.uint16).max)
_PNG_COMPRESSION = 3  # a third less time than the default level for a tenth more bytes


def renumber(instances: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
    """Give the instances of a label map the ids 1..n in ascending order of their old ids.

    Args:
        instances: ``(H, W)`` non-negative integers, 0 = background, any ids.

    Returns:
        The ``(H, W)`` int32 map with contiguous ids, and ``{old id: new id}`` without the background.

    Example:
        >>> renumber(np.array([[0, 7], [3, 7]]))
        (array([[0, 2],
               [1, 2]], dtype=int32), {3: 1, 7: 2})
    """
    present = np.unique(instances)
    old_ids = np.concatenate([[0], present[present != 0]])
    contiguous = np.searchsorted(old_ids, instances).astype(np.int32)
    return contiguous, {int(old): new for new, old in enumerate(old_ids[1:], start=1)}


def read_image(path: Path | str) -> np.ndarray:
    """Read a dataset's image.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        DatasetError: the file is missing, damaged or not RGB with 8 bits per channel.
    """
    pixels = _read_pixels(Path(path))
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DatasetError(f"{path}: expected RGB uint8 (H, W, 3), found {pixels.dtype} {pixels.shape}.")
    return pixels


def read_instances(path: Path | str) -> np.ndarray:
    """Read an instance map from uint16 PNG or int32 TIFF.

    Returns:
        ``(H, W)`` int32, 0 = background.

    Raises:
        DatasetError: the file is missing, damaged, not two-dimensional, not of integers, or has ids below 0.
    """
    pixels = _read_pixels(Path(path))
    if pixels.ndim != 2 or not np.issubdtype(pixels.dtype, np.integer):
        raise DatasetError(
            f"{path}: expected an instance map (H, W) of integers, found {pixels.dtype} {pixels.shape}."
        )
    if pixels.size and (pixels.min() < 0 or pixels.max() > np.iinfo(np.int32).max):
        raise DatasetError(
            f"{path}: instance ids from {pixels.min()} to {pixels.max()}, expected 0 to 2^31-1."
        )
    return pixels.astype(np.int32)


def read_classes(path: Path | str) -> dict[int, int]:
    """Read the class of every instance.

    Returns:
        ``{instance id: class id}``; a class id is an index into the dataset's class names, from 0.

    Raises:
        DatasetError: the file is missing, not JSON, or not a map of integers to integers.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        pairs = {int(key): value for key, value in content.items()}
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, AttributeError) as error:
        raise DatasetError(f"{path}: expected a JSON object {{instance id: class id}} ({error}).") from error
    for instance_id, class_id in pairs.items():
        if isinstance(class_id, bool) or not isinstance(class_id, int):
            raise DatasetError(
                f"{path}: class of instance {instance_id} is {class_id!r}, expected an integer."
            )
    return pairs


def write_image(path: Path, image: np.ndarray) -> None:
    """Write ``(H, W, 3)`` uint8 RGB as PNG."""
    Image.fromarray(image).save(path, compress_level=_PNG_COMPRESSION)


def write_instances(folder: Path, sample_id: str, instances: np.ndarray) -> Path:
    """Write ``(H, W)`` int32 as uint16 PNG, or as int32 TIFF where an id is past 65535; return the file."""
    if instances.max(initial=0) > _UINT16_MAX:
        path = folder / f"{sample_id}.tif"
        Image.fromarray(instances.astype(np.int32)).save(path, compression="tiff_adobe_deflate")
    else:
        path = folder / f"{sample_id}.png"
        Image.fromarray(instances.astype(np.uint16)).save(path, compress_level=_PNG_COMPRESSION)
    return path


def write_classes(path: Path, classes: Mapping[int, int]) -> None:
    """Write ``{instance id: class id}`` as JSON, sorted by id."""
    path.write_text(json.dumps({str(key): classes[key] for key in sorted(classes)}), encoding="utf-8")


def _read_pixels(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: the file is missing. Prepare the dataset again.") from error
    except IMAGE_ERRORS as error:
        raise DatasetError(f"{path}: not a readable image ({error}). Prepare the dataset again.") from error
