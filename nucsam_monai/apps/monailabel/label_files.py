"""Label images in the formats of the viewers, written and read."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nucsam_monai.apps.monailabel.refusals import RequestRefusedError
from nucsam_monai.io import LABEL_MAP_SUFFIXES, read_label_map, write_label_image
from nucsam_monai.io.decoders import DECODER_FAILURES, decode_itk, decode_nifti
from nucsam_monai.utils.errors import ImageReadError
from nucsam_monai.utils.files import atomic_path
from nucsam_monai.utils.instances import connected_components

LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".nrrd", ".nii.gz", ".nii")
"""What a client may ask for as ``result_extension``; 3D Slicer asks for ``.nrrd``."""

_VOLUME_SUFFIXES = (".nrrd", ".nii.gz", ".nii", ".mha")

READABLE_LABEL_SUFFIXES = (*LABEL_MAP_SUFFIXES, *_VOLUME_SUFFIXES)
"""Label images that annotators may save, those of 3D Slicer among them."""

_LARGEST_UINT16 = int(np.iinfo(np.uint16).max)


def label_suffix(wanted: object, highest_id: int) -> str:
    """Return the suffix of the label image to write: the client's, else one that can hold the ids.

    Args:
        wanted: ``result_extension`` of the request; None leaves the choice.
        highest_id: PNG holds ids up to 65535, the others up to 2^31 - 1.

    Raises:
        RequestRefusedError: an unknown format, or one that cannot hold the ids.
    """
    if wanted in (None, ""):
        return ".png" if highest_id <= _LARGEST_UINT16 else ".tif"
    if not isinstance(wanted, str) or wanted not in LABEL_SUFFIXES:
        raise RequestRefusedError(
            f"result_extension {str(wanted)[:40]!r}: expected one of {', '.join(LABEL_SUFFIXES)}."
        )
    if wanted == ".png" and highest_id > _LARGEST_UINT16:
        raise RequestRefusedError(f"result_extension .png: {highest_id} nuclei do not fit. Ask for .tif.")
    return wanted


def write_label(path: Path, label_map: NDArray[np.int32]) -> None:
    """Write a ``(H, W)`` label map as uint16, or int32 where an id is larger; rows are y in every format.

    Args:
        path: its suffix is one of :data:`LABEL_SUFFIXES`.
        label_map: 0 is background.
    """
    if path.suffix in (".tif", ".tiff"):
        write_label_image(path, label_map)
        return
    highest = int(label_map.max(initial=0))
    stored = label_map.astype(np.uint16 if highest <= _LARGEST_UINT16 else np.int32, copy=False)
    if path.suffix == ".png":
        with atomic_path(path) as temporary:
            Image.fromarray(stored).save(temporary, format="PNG", compress_level=3)
        return
    import itk  # it takes a second to load, and most clients want none of its formats

    # ITK counts columns first, and so does the array that it makes of rows first.
    image = itk.image_from_array(np.ascontiguousarray(stored))
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    part = path.with_name(f".{path.name[: -len(suffix)]}.part{suffix}")
    try:
        itk.imwrite(image, str(part), compression=True)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_label(path: Path, max_pixels: int) -> NDArray[np.int32]:
    """Read a label image that an annotator saved.

    Args:
        path: its suffix is one of :data:`READABLE_LABEL_SUFFIXES`.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        ``(H, W)`` int32, 0 being background.

    Raises:
        ImageReadError: the file is damaged, too large, no plane, or its values are no ids.
    """
    if not path.name.lower().endswith(_VOLUME_SUFFIXES):
        return read_label_map(path, max_pixels=max_pixels)
    decode = decode_nifti if path.name.lower().endswith((".nii", ".nii.gz")) else decode_itk
    try:
        values = decode(path, max_pixels)
    except DECODER_FAILURES as error:
        raise ImageReadError(f"{path.name}: damaged ({type(error).__name__}). Save it again.") from error
    largest = np.iinfo(np.int32).max
    is_whole = values.ndim == 2 and np.isfinite(values).all() and (values == np.floor(values)).all()
    if not is_whole or (values.size and not 0 <= values.min() <= values.max() <= largest):
        raise ImageReadError(f"{path.name}: expected one map of whole ids from 0 on, found {values.shape}.")
    return values.astype(np.int32)


def nuclei_of_label(label_map: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return instances: a map of one id alone is a mask of all nuclei, of which the connected parts are the nuclei."""
    ids = np.unique(label_map[label_map > 0])
    return connected_components(label_map > 0) if len(ids) == 1 else label_map
