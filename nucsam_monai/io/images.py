"""Find images in folders and read every supported format as 8-bit RGB."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin

from nucsam_monai.io.decoders import (
    DECODER_FAILURES,
    Decoder,
    decode_itk,
    decode_nifti,
    decode_tiff,
    pillow_decoder,
)
from nucsam_monai.utils.errors import ImageReadError

MAX_PIXELS = 1 << 30
"""Largest image that is read by default, in pixels (about one gigapixel, 3 GiB as RGB)."""

_FORMAT_OF_SUFFIX = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".nii": "NIfTI",
    ".nii.gz": "gzipped NIfTI",
    ".nrrd": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
}

_DECODER_OF_FORMAT: dict[str, Decoder] = {
    "PNG": pillow_decoder(PngImagePlugin.PngImageFile),
    "JPEG": pillow_decoder(JpegImagePlugin.JpegImageFile),
    "BMP": pillow_decoder(BmpImagePlugin.BmpImageFile),
    "TIFF": decode_tiff,
    "NIfTI": decode_nifti,
    "gzipped NIfTI": decode_nifti,
    "NRRD": decode_itk,
    "MetaImage": decode_itk,
}

_FIRST_BYTES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"NRRD", "NRRD"),
    (b"\x1f\x8b", "gzipped NIfTI"),
    (b"\x5c\x01\0\0", "NIfTI"),
    (b"\0\0\x01\x5c", "NIfTI"),
    (b"\x1c\x02\0\0", "NIfTI"),
    (b"\0\0\x02\x1c", "NIfTI"),
)
_FORMATS_WITHOUT_FIRST_BYTES = frozenset({"MetaImage"})

SUPPORTED_SUFFIXES = tuple(_FORMAT_OF_SUFFIX)
"""Suffixes, lower case, of the files that :func:`read_image` reads."""


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read one image as RGB.

    Rows are y and columns are x for every format, and an EXIF orientation is applied; see
    :mod:`nucsam_monai.io.decoders`. Alpha is dropped.
    Values of other types than uint8 follow :func:`nucsam_monai.io.images.to_rgb_uint8`.

    Args:
        path: a file with one of :data:`SUPPORTED_SUFFIXES`.
        max_pixels: larger images are refused before their pixels are decoded.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        ImageReadError: the file is missing, empty, damaged, of another format than its name says, larger
            than ``max_pixels``, or not one 2-D grey or colour image.
    """
    path = Path(path)
    suffix = _image_suffix(path)
    if suffix is None:
        raise ImageReadError(
            f"{path}: not a supported image ('{path.suffix}'). Supported: {', '.join(SUPPORTED_SUFFIXES)}."
        )
    expected = _FORMAT_OF_SUFFIX[suffix]
    _check_first_bytes(path, expected)
    try:
        pixels = _DECODER_OF_FORMAT[expected](path, max_pixels)
    except DECODER_FAILURES as error:
        cause = (str(error).strip().splitlines() or ["no further explanation"])[-1]
        raise ImageReadError(
            f"{path}: damaged, or an unknown kind of {expected} ({type(error).__name__}: {cause}). "
            "Open it in an image viewer and save it again, or fetch it again."
        ) from error
    return to_rgb_uint8(pixels, str(path))


def _image_suffix(path: Path | str) -> str | None:
    """Return the supported suffix of ``path`` in lower case (``".nii.gz"`` as one), or None."""
    name = Path(path).name.lower()
    matching = [suffix for suffix in SUPPORTED_SUFFIXES if name.endswith(suffix) and name != suffix]
    return max(matching, key=len, default=None)


def content_format(start: bytes) -> str | None:
    """Return the format of a file (``"PNG"``, ``"TIFF"``, ...) by its first 8 bytes, or None."""
    return next((name for first_bytes, name in _FIRST_BYTES if start.startswith(first_bytes)), None)


def find_images(path: Path | str) -> list[Path]:
    """Return the image itself, or the images directly inside a folder, sorted by name.

    Hidden files and files of other types are skipped; folders inside are not entered.

    Raises:
        ImageReadError: ``path`` does not exist, is a file of an unsupported type, or holds no image.

    Example:
        >>> find_images("tests/no_such_folder")
        Traceback (most recent call last):
        ...
        nucsam_monai.utils.errors.ImageReadError: tests/no_such_folder: no such file or folder.
    """
    path = Path(path)
    if path.is_file():
        if _image_suffix(path) is None:
            raise ImageReadError(
                f"{path}: not a supported image. Supported: {', '.join(SUPPORTED_SUFFIXES)}."
            )
        return [path]
    if not path.is_dir():
        raise ImageReadError(f"{path}: no such file or folder.")
    try:
        images = [
            file
            for file in sorted(path.iterdir())
            if not file.name.startswith(".") and _image_suffix(file) is not None and file.is_file()
        ]
    except OSError as error:
        raise ImageReadError(f"{path}: the folder cannot be read ({error.strerror}).") from error
    if not images:
        raise ImageReadError(f"{path}: no image in this folder. Supported: {', '.join(SUPPORTED_SUFFIXES)}.")
    return images


def output_stems(paths: Iterable[Path | str]) -> dict[Path, str]:
    """Give every image a stem for its output files that no other image of the run has.

    It is the name without its suffix. Images that would share a stem (``a.png`` and ``a.tif``) get their
    suffix too (``a_png``, ``a_tif``), and a number where that is taken. Case does not count as a difference,
    because it is none on some file systems.

    Example:
        >>> list(output_stems(["a.png", "a.tif", "b.nii.gz"]).values())
        ['a_png', 'a_tif', 'b']
    """
    unique_paths = list(dict.fromkeys(Path(path) for path in paths))
    plain = {path: path.name[: -len(_image_suffix(path) or path.suffix) or None] for path in unique_paths}
    uses = Counter(stem.casefold() for stem in plain.values())
    stems = {path: stem for path, stem in plain.items() if uses[stem.casefold()] == 1}
    taken = {stem.casefold() for stem in stems.values()}
    for path in unique_paths:
        if path in stems:
            continue
        with_suffix = f"{plain[path]}_{(_image_suffix(path) or path.suffix).strip('.').replace('.', '_')}"
        candidate, number = with_suffix, 2
        while candidate.casefold() in taken:
            candidate, number = f"{with_suffix}_{number}", number + 1
        stems[path] = candidate
        taken.add(candidate.casefold())
    return {path: stems[path] for path in unique_paths}


def _check_first_bytes(path: Path, expected: str) -> None:
    """Refuse a file that is missing, empty, or by its first bytes of another format than its name says."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise ImageReadError(f"{path}: cannot be opened ({error.strerror}).") from error
    if not start:
        raise ImageReadError(f"{path}: the file is empty (0 bytes). Fetch or export it again.")
    found = content_format(start)
    if found not in (None, expected):
        raise ImageReadError(f"{path}: the name says {expected}, the content is {found}. Correct the suffix.")
    if found is None and expected not in _FORMATS_WITHOUT_FIRST_BYTES:
        raise ImageReadError(f"{path}: not a {expected} file (first bytes: {start[:4].hex()}).")


def to_rgb_uint8(pixels: np.ndarray, source: str) -> np.ndarray:
    """Convert the pixels of one image to RGB uint8.

    8-bit values are kept. Of every other type the values of all channels together decide, so that colours
    keep their proportions:

    ========================================  ==================================================
    values                                    result
    ========================================  ==================================================
    booleans                                  0 and 255
    all in 0..1, floating point               times 255
    all in 0..255 otherwise                   kept (8-bit data in a wider type)
    anything else, for example 12 or 16 bits  straight line from the lowest (0) to the highest (255)
    ========================================  ==================================================

    Grey is repeated in the three channels.

    Args:
        pixels: ``(H, W)`` or ``(H, W, 3)`` booleans, integers or floating point numbers.
        source: what an error message calls the image, usually its path.

    Returns:
        ``(H, W, 3)`` uint8, C-contiguous.

    Raises:
        ImageReadError: another shape or type, no pixels, or a value that is NaN or infinite.

    Example:
        >>> to_rgb_uint8(np.array([[0, 4095]], dtype=np.uint16), "dapi.tif")[..., 0]
        array([[  0, 255]], dtype=uint8)
    """
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ImageReadError(
            f"{source}: expected one grey or RGB image, found an array of shape {pixels.shape}."
        )
    if pixels.size == 0:
        raise ImageReadError(f"{source}: the image has no pixels (shape {pixels.shape}).")
    values = _to_uint8(pixels, source)
    if values.ndim == 2:
        values = np.repeat(values[..., np.newaxis], 3, axis=2)
    return np.ascontiguousarray(values)


def _to_uint8(pixels: np.ndarray, source: str) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    is_float = np.issubdtype(pixels.dtype, np.floating)
    if not is_float and not np.issubdtype(pixels.dtype, np.integer):
        raise ImageReadError(f"{source}: pixels of type {pixels.dtype} are not grey or colour values.")
    if is_float:
        invalid = pixels.size - int(np.count_nonzero(np.isfinite(pixels)))
        if invalid:
            raise ImageReadError(
                f"{source}: {invalid} of {pixels.size} values are NaN or infinite. Replace them first."
            )
    lowest, highest = float(pixels.min()), float(pixels.max())
    if is_float and lowest >= 0 and highest <= 1:
        offset, gain = 0.0, 255.0
    elif lowest >= 0 and highest <= 255:
        offset, gain = 0.0, 1.0
    else:
        # Halved, because the difference of two finite numbers need not be finite.
        half_range = highest / 2 - lowest / 2
        offset, gain = lowest, 127.5 / half_range if half_range > 0 else 0.0
    if np.isinf(gain) or np.isinf(highest - offset):
        raise ImageReadError(f"{source}: values from {lowest:g} to {highest:g} are not light intensities.")
    scaled = (pixels.astype(np.float64) - offset) * gain
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
