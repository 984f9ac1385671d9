"""Reading images of every supported format and finding them in folders."""

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
from nucsam_monai.io.intensity import to_rgb_uint8
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

    Rows are y and columns are x for every format; see :mod:`nucsam_monai.io.decoders`. Alpha is dropped.
    Values of other types than uint8 follow :func:`nucsam_monai.io.intensity.to_rgb_uint8`.

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
    suffix = image_suffix(path)
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


def image_suffix(path: Path | str) -> str | None:
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
        if image_suffix(path) is None:
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
            if not file.name.startswith(".") and image_suffix(file) is not None and file.is_file()
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
    plain = {path: path.name[: -len(image_suffix(path) or path.suffix) or None] for path in unique_paths}
    uses = Counter(stem.casefold() for stem in plain.values())
    stems = {path: stem for path, stem in plain.items() if uses[stem.casefold()] == 1}
    taken = {stem.casefold() for stem in stems.values()}
    for path in unique_paths:
        if path in stems:
            continue
        with_suffix = f"{plain[path]}_{(image_suffix(path) or path.suffix).strip('.').replace('.', '_')}"
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
