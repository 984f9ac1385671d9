"""Find images in folders and read every supported format as 8-bit RGB."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from nucsam_monai.io.decoders import (
    DECODER_FAILURES,
    Decoder,
    ImageTooLargeError,
    decode_itk,
    decode_nifti,
    decode_tiff,
    pillow_decoder,
)
from nucsam_monai.utils.errors import ConfigurationError, ImageReadError
from nucsam_monai.utils.machine import free_memory_bytes

logger = logging.getLogger(__name__)

MAX_PIXELS = 1 << 30
"""Largest image that is read by default, in pixels (about one gigapixel, 3 GiB as RGB)."""

SEGMENTING_BYTES = 80
"""Bytes of memory for each pixel of an image that is segmented as a whole; bundles were measured at 45 to 76."""

_WHOLE_PX = 64_000_000
"""Largest image that is segmented as a whole by default, in pixels."""

_IN_PARTS_BYTES, _ALL_PARTS_BYTES = 12, 2 << 30
"""Bytes for each pixel of an image that is segmented in parts, measured at 11, and for the parts in work."""

_ALWAYS_SEGMENTED = 1 << 20
"""Pixels of an image that is segmented regardless of the reported free memory."""

IntensityRange = tuple[float, float]
"""The values that become black and white."""

_PERCENTILES = (0.1, 99.9)
_COUNTED_VALUES = 1 << 22
"""About so many values of a large image give its percentiles."""
_SCALED_AT_ONCE = 1 << 22

_FORMAT_OF_SUFFIX = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".bmp": "BMP",
    ".webp": "WebP",
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
    "WebP": pillow_decoder(WebPImagePlugin.WebPImageFile),
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
    (b"RIFF", "WebP"),
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
_READ_BY_CONTENT = frozenset({"PNG", "JPEG", "BMP", "WebP", "TIFF"})
"""Formats that are read under each other's suffixes, because public datasets have misnamed files."""
_FORMATS_WITHOUT_FIRST_BYTES = frozenset({"MetaImage"})

SUPPORTED_SUFFIXES = tuple(_FORMAT_OF_SUFFIX)
"""Suffixes, lower case, of the files that :func:`read_image` reads."""


def read_image(
    path: Path | str, *, max_pixels: int = MAX_PIXELS, intensity_range: IntensityRange | None = None
) -> np.ndarray:
    """Read one image file as 8-bit RGB.

    PNG, JPEG, BMP, TIFF and WebP are recognised by their content, other formats by their suffix. Rows are y and
    columns are x in every format, and an EXIF orientation is applied. The alpha channel is dropped, and pixels that
    are not uint8 are converted by :func:`to_rgb_uint8`.

    Args:
        path: file with one of :data:`SUPPORTED_SUFFIXES`.
        max_pixels: largest number of pixels; larger images raise before they are decoded.
        intensity_range: pixel values that become 0 and 255, see :func:`to_rgb_uint8`.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        ImageReadError: the file is missing, empty or damaged, its content does not fit its suffix, it has more than
            ``max_pixels``, or it is not a single 2-D grey or colour image.
    """
    path = Path(path)
    suffix = _image_suffix(path)
    if suffix is None:
        raise ImageReadError(
            f"{path}: not a supported image ('{path.suffix}'). Supported: {', '.join(SUPPORTED_SUFFIXES)}."
        )
    kind = _format_of(path, _FORMAT_OF_SUFFIX[suffix])
    try:
        pixels = _DECODER_OF_FORMAT[kind](path, max_pixels)
    except DECODER_FAILURES as error:
        cause = (str(error).strip().splitlines() or ["no further explanation"])[-1]
        raise ImageReadError(
            f"{path}: damaged, or an unknown kind of {kind} ({type(error).__name__}: {cause}). "
            "Open it in an image viewer and save it again, or fetch it again."
        ) from error
    if intensity_range is None and pixels.dtype not in (np.uint8, np.bool_):
        _say_once(path.parent, str(pixels.dtype))
    return to_rgb_uint8(pixels, str(path), intensity_range)


def whole_image_px(strips_above_mpx: float | None = None, max_pixels: int | None = None) -> int:
    """Return the largest number of pixels that are segmented in one piece; larger images are segmented in parts.

    Args:
        strips_above_mpx: the user's choice in millions of pixels.
        max_pixels: used if ``strips_above_mpx`` is None. If both are None, the limit follows from the free memory,
            up to 64 million pixels.
    """
    chosen = [max_pixels, None if strips_above_mpx is None else strips_above_mpx * 1e6]
    limits = [int(limit) for limit in chosen if limit is not None]
    free = free_memory_bytes()
    fitting = _WHOLE_PX if free is None else min(_WHOLE_PX, free // SEGMENTING_BYTES)
    return min(limits) if limits else max(_ALWAYS_SEGMENTED, fitting)


def check_memory_for_whole(width: int, height: int, reason: str) -> None:
    """Check that the free memory suffices to segment an image in one piece.

    Args:
        width: width of the image in pixels.
        height: height of the image in pixels.
        reason: why the image is not segmented in parts, and what to do; ends the error message.

    Raises:
        ImageReadError: it does not; the message gives the memory needed and the memory available.
    """
    free, needed = free_memory_bytes(), width * height * SEGMENTING_BYTES
    if free is not None and needed > free:
        raise ImageReadError(
            f"image: {width} x {height} pixels take about {needed / 1e9:.3g} GB of memory as a whole, {free / 1e9:.3g} "
            f"GB are free, and it cannot be segmented in parts. {reason}"
        )


def read_image_to_segment(
    path: Path | str, max_pixels: int | None = None, intensity_range: IntensityRange | None = None
) -> np.ndarray:
    """Read an image like :func:`read_image`, after checking that the memory suffices to segment it in parts.

    Args:
        path: file with one of :data:`SUPPORTED_SUFFIXES`.
        max_pixels: largest number of pixels. Default: what the free memory allows, up to :data:`MAX_PIXELS`.
        intensity_range: pixel values that become 0 and 255, see :func:`to_rgb_uint8`.

    Raises:
        ImageReadError: the file cannot be read or is too large.
    """
    free = free_memory_bytes() if max_pixels is None else None
    fitting = MAX_PIXELS if free is None else max(0, free - _ALL_PARTS_BYTES) // _IN_PARTS_BYTES
    limit = max_pixels or min(MAX_PIXELS, max(_ALWAYS_SEGMENTED, fitting))
    try:
        return read_image(path, max_pixels=limit, intensity_range=intensity_range)
    except ImageTooLargeError as error:
        needed = (error.width * error.height * _IN_PARTS_BYTES + _ALL_PARTS_BYTES) / 1e9
        has = "" if free is None else f", and {free / 1e9:.3g} GB are free"
        raise ImageReadError(
            f"{path}: {error.width} x {error.height} pixels are more than the allowed {limit}: segmented in parts they "
            f"take about {needed:.3g} GB of memory{has}. Segment it as a slide (nucsam slides run), or set max_pixels."
        ) from error


def _image_suffix(path: Path | str) -> str | None:
    """Return the supported suffix of ``path`` in lower case (``".nii.gz"`` as one), or None."""
    name = Path(path).name.lower()
    matching = [suffix for suffix in SUPPORTED_SUFFIXES if name.endswith(suffix) and name != suffix]
    return max(matching, key=len, default=None)


def content_format(start: bytes) -> str | None:
    """Identify an image format (``"PNG"``, ``"TIFF"``, ...) by the first 8 bytes of a file; None if unknown."""
    return next((name for first_bytes, name in _FIRST_BYTES if start.startswith(first_bytes)), None)


def find_images(path: Path | str) -> list[Path]:
    """List the images of a folder, sorted by name; for an image file, return it alone.

    Hidden files, files of other types (the log gives their number) and subfolders are skipped.

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
        files = [file for file in sorted(path.iterdir()) if file.name[0] != "." and file.is_file()]
    except OSError as error:
        raise ImageReadError(f"{path}: the folder cannot be read ({error.strerror}).") from error
    images = [file for file in files if _image_suffix(file) is not None]
    if not images:
        raise ImageReadError(f"{path}: no image in this folder. Supported: {', '.join(SUPPORTED_SUFFIXES)}.")
    others = Counter(file.suffix.lower() or "no suffix" for file in files if _image_suffix(file) is None)
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        logger.warning("%s: skipped %d files that are not supported images: %s", path, others.total(), kinds)
    return images


def output_stems(paths: Iterable[Path | str]) -> dict[Path, str]:
    """Choose a unique stem for the output files of every image.

    The stem is the file name without its suffix. Images with the same stem (``a.png`` and ``a.tif``) keep their suffix
    (``a_png``, ``a_tif``), with a number if that is taken too. Upper and lower case count as equal because some file
    systems do not distinguish them.

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


def _format_of(path: Path, expected: str) -> str:
    """Return the format of a file; raise if it is missing or empty, or if its content does not fit its suffix."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise ImageReadError(f"{path}: cannot be opened ({error.strerror}).") from error
    if not start:
        raise ImageReadError(f"{path}: the file is empty (0 bytes). Fetch or export it again.")
    found = content_format(start)
    if found is not None and {found, expected} <= _READ_BY_CONTENT:
        return found
    if found not in (None, expected):
        raise ImageReadError(f"{path}: the name says {expected}, the content is {found}. Correct the suffix.")
    if found is None and expected not in _FORMATS_WITHOUT_FIRST_BYTES:
        raise ImageReadError(f"{path}: not a {expected} file (first bytes: {start[:4].hex()}).")
    return expected


def to_rgb_uint8(
    pixels: np.ndarray, source: str, intensity_range: IntensityRange | None = None
) -> np.ndarray:
    """Convert the pixels of one image to 8-bit RGB.

    uint8 is kept, and False and True become 0 and 255. Other types are scaled linearly so that ``intensity_range``
    becomes 0..255, the same for all channels. Without a range the percentiles 0.1 and 99.9 of all values are taken,
    so that a few hot pixels do not reduce the contrast. Grey images get three equal channels.

    Args:
        pixels: ``(H, W)`` or ``(H, W, 3)`` booleans, integers or floats.
        source: how error messages name the image, usually its path.
        intensity_range: pixel values that become 0 and 255; values outside the range are clipped.

    Returns:
        ``(H, W, 3)`` uint8, C-contiguous.

    Raises:
        ImageReadError: the array has another shape or type, no pixels, or values that are NaN or infinite.

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
    values = _to_uint8(pixels, source, intensity_range)
    if values.ndim == 2:
        values = np.repeat(values[..., np.newaxis], 3, axis=2)
    return np.ascontiguousarray(values)


def check_intensity_range(value: Sequence[float] | None) -> IntensityRange | None:
    """Check an intensity range: two finite numbers, the lower one first, or None.

    Raises:
        ConfigurationError: the value is anything else.
    """
    if value is None:
        return None
    is_pair = isinstance(value, Sequence) and len(value) == 2
    if not is_pair or not all(isinstance(end, (int, float)) for end in value) or not value[0] < value[1]:
        raise ConfigurationError(
            f"intensity_range {value!r}: expected the values that become black and white, for example [0, 4095]."
        )
    return float(value[0]), float(value[1])


def _to_uint8(pixels: np.ndarray, source: str, intensity_range: IntensityRange | None) -> np.ndarray:
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
    low, high = intensity_range or _contrast(pixels)
    if np.isinf(high - low):
        raise ImageReadError(f"{source}: values from {low:g} to {high:g} are not light intensities.")
    if high == low:
        return np.zeros(pixels.shape, np.uint8)
    result = np.empty(pixels.shape, np.uint8)
    rows = max(1, _SCALED_AT_ONCE // max(1, pixels[0].size))
    for top in range(0, len(pixels), rows):
        scaled = (pixels[top : top + rows].astype(np.float64) - low) / (high - low) * 255
        result[top : top + rows] = np.clip(np.rint(scaled), 0, 255)
    return result


def _contrast(pixels: np.ndarray) -> IntensityRange:
    """Return the percentiles 0.1 and 99.9, or minimum and maximum if nearly all pixels have the same value."""
    step = max(1, round((pixels.size / _COUNTED_VALUES) ** 0.5))
    counted = pixels[::step, ::step]
    low = float(np.percentile(counted, _PERCENTILES[0], method="lower"))
    high = float(np.percentile(counted, _PERCENTILES[1], method="higher"))
    return (low, high) if high > low else (float(pixels.min()), float(pixels.max()))


@lru_cache(maxsize=256)
def _say_once(folder: Path, dtype: str) -> None:
    """Log how pixel values become grey levels, once per folder and pixel type."""
    logger.info(
        "%s: pixels of type %s do not say what is black and white: the percentiles %g and %g of each image are. "
        "intensity_range sets other values.",
        folder,
        dtype,
        *_PERCENTILES,
    )
