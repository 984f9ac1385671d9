"""Open slides as pyramids from which any rectangle can be read, independent of the library that opens the file."""

import hashlib
import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tifffile

from nucsam_monai.io import read_image
from nucsam_monai.utils.errors import ImageReadError

logger = logging.getLogger(__name__)

_SAMPLE_BYTES = 1 << 20
_CM_PER_UNIT = {"centimeter": 1.0, "centimetre": 1.0, "inch": 2.54}
_UM_PER_UNIT = {"\N{MICRO SIGN}m": 1.0, "\N{GREEK SMALL LETTER MU}m": 1.0, "nm": 1e-3, "mm": 1e3}
_PLAUSIBLE_MPP = (0.05, 5.0)
_SAME_MPP = 0.02
_INSTALL = "Install them with: pip install 'nucsam-monai[slides]'."


class SlideError(ImageReadError):
    """A slide cannot be opened or lacks information that its segmentation needs."""


class SlideMetadataError(SlideError):
    """The micrometres per pixel of a slide are unknown or implausible."""


class Level(NamedTuple):
    """Describe one resolution of a slide: its size in its own pixels and its downsampling factor."""

    width: int
    height: int
    downsample: float


class Mpp(NamedTuple):
    """Hold the micrometres per pixel at level 0 and their source."""

    value: float
    source: str


class SlideReader(ABC):
    """Read the pixels of an open slide.

    Attributes:
        path: path of the file.
        levels: resolutions, finest first.
        properties: metadata of the file.
        bounds: scanned area ``(x, y, width, height)`` in pixels of level 0.
        is_in_memory: whether all pixels are in memory.
    """

    is_in_memory = False
    path: Path
    levels: tuple[Level, ...]
    properties: dict[str, str]
    bounds: tuple[int, int, int, int]

    @abstractmethod
    def _pixels(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a rectangle inside of a level, ``(height, width, 3)`` uint8."""

    @abstractmethod
    def reopen(self) -> None:
        """Open the file again, because some libraries fail at every read after an error."""

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Read a rectangle of a level as ``(height, width, 3)`` uint8 RGB; pixels outside the slide are white.

        Args:
            level: index into :attr:`levels`.
            x: first column in pixels of the level.
            y: first row in pixels of the level.
            width: number of columns.
            height: number of rows.

        Raises:
            SlideError: the rectangle cannot be decoded, even after opening the file again.
        """
        result = np.full((height, width, 3), 255, dtype=np.uint8)
        size = self.levels[level]
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, size.width), min(y + height, size.height)
        if left >= right or top >= bottom:
            return result
        try:
            pixels = self._pixels(level, left, top, right - left, bottom - top)
        except Exception:  # noqa: BLE001 - each library has its own errors
            try:
                self.reopen()
                pixels = self._pixels(level, left, top, right - left, bottom - top)
            except Exception as error:
                raise SlideError(
                    f"{self.path}: level {level}, x {left}, y {top}: unreadable ({error})."
                ) from error
        result[top - y : bottom - y, left - x : right - x] = pixels
        return result

    @property
    def mpp(self) -> Mpp | None:
        """Micrometres per pixel from the file's metadata; None if it has none."""
        return mpp_of_properties(self.properties)


class OpenSlideReader(SlideReader):
    """Read a scanner's slide or a pyramidal TIFF with OpenSlide."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reopen()
        slide = self._slide
        sizes, scales = slide.level_dimensions, slide.level_downsamples
        self.levels = tuple(Level(size[0], size[1], scale) for size, scale in zip(sizes, scales, strict=True))
        self.properties = dict(slide.properties)
        whole = (0, 0, *slide.dimensions)
        names = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
        self.bounds = tuple(int(self.properties.get(n, w)) for n, w in zip(names, whole, strict=True))  # type: ignore[assignment]

    def reopen(self) -> None:
        """See :meth:`SlideReader.reopen`."""
        import openslide

        self._slide = openslide.OpenSlide(str(self.path))

    def _pixels(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        scale = self.levels[level].downsample
        rgba = np.asarray(
            self._slide.read_region((round(x * scale), round(y * scale)), level, (width, height))
        )
        pixels = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)
        pixels[rgba[..., 3] == 0] = 255  # what was not scanned is transparent
        return pixels


class TiffSlideReader(SlideReader):
    """Read an OME-TIFF with its pyramid, which OpenSlide does not support, with tiffslide."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reopen()
        sizes, scales = self._slide.level_dimensions, self._slide.level_downsamples
        self.levels = tuple(
            Level(size[0], size[1], float(scale)) for size, scale in zip(sizes, scales, strict=True)
        )
        self.properties = {
            key: str(value) for key, value in self._slide.properties.items() if value is not None
        }
        with tifffile.TiffFile(path) as file:
            self.properties |= _physical_size(file.ome_metadata or "")
        self.bounds = (0, 0, self.levels[0].width, self.levels[0].height)

    def reopen(self) -> None:
        """See :meth:`SlideReader.reopen`."""
        import tiffslide

        self._slide = tiffslide.TiffSlide(str(self.path))

    def _pixels(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        scale = self.levels[level].downsample
        corner = (round(x * scale), round(y * scale))
        return np.asarray(self._slide.read_region(corner, level, (width, height), as_array=True))[..., :3]


class ImageReader(SlideReader):
    """Read a plain image, kept in memory, as a slide with one level.

    Args:
        path: path of the file.
        pixels: ``(H, W, 3)`` uint8 to use instead of reading the file.
        mpp: micrometres per pixel of the image, if known.
    """

    is_in_memory = True

    def __init__(self, path: Path, pixels: np.ndarray | None = None, mpp: float | None = None) -> None:
        self.path = path
        self._image = read_image(path) if pixels is None else pixels
        height, width = self._image.shape[:2]
        self.levels = (Level(width, height, 1.0),)
        self.properties = {} if mpp is None else {"openslide.mpp-x": str(mpp), "openslide.mpp-y": str(mpp)}
        if mpp is None and _is_tiff(path):
            self.properties = _resolution_tags(path)
        self.bounds = (0, 0, width, height)

    def reopen(self) -> None:
        """See :meth:`SlideReader.reopen`; nothing is open."""

    def _pixels(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        return self._image[y : y + height, x : x + width]


def open_slide(path: Path | str) -> SlideReader:
    """Open a slide or a plain image with the library that fits its content.

    OME-TIFF and pyramids in SubIFDs are opened with tiffslide, everything else that OpenSlide recognises with
    OpenSlide, and other files as plain images.

    Raises:
        SlideError: the file is missing, damaged or not 8-bit RGB, or its library is not installed.

    Example:
        >>> slide = open_slide("case.svs")  # doctest: +SKIP
        >>> slide.read(0, 1000, 2000, 256, 256).shape  # doctest: +SKIP
        (256, 256, 3)
    """
    return pyramid_of(Path(path)) or ImageReader(Path(path))


def pyramid_of(path: Path) -> SlideReader | None:
    """Open a slide like :func:`open_slide`, but return None for a plain image.

    Raises:
        SlideError: the file is missing, damaged, not 8-bit RGB, or its library is not installed.
    """
    if not path.is_file() and not path.is_dir():
        raise SlideError(f"{path}: no such file. Pass the path of a slide.")
    try:
        return _open(path)
    except OSError as error:
        raise SlideError(
            f"{path}: cannot be read ({error.strerror or error}). Copy the file again."
        ) from error


def _open(path: Path) -> SlideReader | None:
    try:
        if _is_tiff(path) and _has_sub_levels(path):
            return TiffSlideReader(path)
        import openslide
    except ImportError as error:
        raise SlideError(f"{path}: a library for slides is missing ({error.name}). {_INSTALL}") from error
    try:
        if openslide.OpenSlide.detect_format(str(path)) is not None:
            return OpenSlideReader(path)
    except openslide.OpenSlideError as error:
        raise SlideError(f"{path}: OpenSlide cannot open it ({error}). Copy the file again.") from error
    return None


def mpp_of_slide(reader: SlideReader, given: float | None = None) -> Mpp:
    """Return the micrometres per pixel of level 0: the given value, else the file's; it is never guessed.

    Raises:
        SlideMetadataError: both are missing, or the value is outside 0.05 to 5 um.
    """
    found = Mpp(float(given), "given") if given is not None else reader.mpp
    if found is None:
        words = ("mpp", "resolution", "apppower", "appmag", "objective")
        seen = [
            f"{k}={v}" for k, v in sorted(reader.properties.items()) if any(w in k.lower() for w in words)
        ]
        raise SlideMetadataError(
            f"{reader.path}: no micrometres per pixel (keys seen: {', '.join(seen) or 'none'}). "
            "Pass --mpp, for example --mpp 0.25."
        )
    if not _PLAUSIBLE_MPP[0] <= found.value <= _PLAUSIBLE_MPP[1]:
        raise SlideMetadataError(
            f"{reader.path}: {found.value:g} um/px ({found.source}), expected {_PLAUSIBLE_MPP[0]} to "
            f"{_PLAUSIBLE_MPP[1]}. Pass --mpp with the true value."
        )
    return found


def warn_of_other_mpp(reader: SlideReader, mpp: Mpp) -> None:
    """Warn if the given micrometres per pixel differ from the file's by more than 2 %."""
    own = reader.mpp
    if own is not None and not math.isclose(mpp.value, own.value, rel_tol=_SAME_MPP):
        logger.warning(
            "%s: %g um/px given, but the file says %g (%s). The given value is used.",
            *(reader.path, mpp.value, own.value, own.source),
        )


def mpp_of_properties(properties: Mapping[str, str]) -> Mpp | None:
    """Return the micrometres per pixel in a slide's metadata: the vendor's value, else TIFF's resolution tags."""
    for prefix in ("openslide.mpp", "tiffslide.mpp", "ome.mpp"):
        x, y = (_number(properties.get(f"{prefix}-{axis}")) for axis in "xy")
        if x and y:
            return _square(x, y, f"{prefix}-x")
    unit = str(properties.get("tiff.ResolutionUnit", "")).lower().rpartition(".")[2]
    x, y = (_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY")
    if unit in _CM_PER_UNIT and x and y:
        um = 1e4 * _CM_PER_UNIT[unit]
        found = _square(um / x, um / y, "tiff.XResolution")
        # 72 or 300 dots per inch is what programs write that know nothing of micrometres.
        return found if found and _PLAUSIBLE_MPP[0] <= found.value <= _PLAUSIBLE_MPP[1] else None
    return None


def fingerprint(path: Path) -> str:
    """Return a digest of a slide's size, first and last megabyte, which a copy shares."""
    if path.is_dir():
        return hashlib.sha256("\n".join(sorted(p.name for p in path.iterdir())).encode()).hexdigest()
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(0, size - _SAMPLE_BYTES))
        digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _square(x: float, y: float, source: str) -> Mpp | None:
    """Return the mean of both axes; None where they differ by more than 1 %, for pixels are square here."""
    return Mpp((x + y) / 2, source) if math.isclose(x, y, rel_tol=0.01) else None


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def _is_tiff(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _has_sub_levels(path: Path) -> bool:
    """Return whether a TIFF is OME or holds its pyramid in SubIFDs; refuse what is not 8-bit."""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            if not isinstance(page, tifffile.TiffPage):
                return False
            if page.is_tiled and page.dtype != np.uint8:
                raise SlideError(
                    f"{path}: pixels of type {page.dtype}, expected 8-bit RGB. Convert it to 8 bits with one "
                    "intensity range for the whole slide."
                )
            return bool(page.is_tiled and (file.is_ome or page.subifds))
    except (tifffile.TiffFileError, OSError, IndexError, ValueError) as error:
        raise SlideError(f"{path}: damaged TIFF ({error}). Copy the file again.") from error


def _physical_size(xml: str) -> dict[str, str]:
    """Return the micrometres per pixel of the first image that an OME-XML describes."""
    found: dict[str, str] = {}
    for axis in "XY":
        size = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', xml)
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', xml)
        factor = _UM_PER_UNIT.get(unit.group(1) if unit else "\N{MICRO SIGN}m")
        number = _number(size.group(1)) if size else None
        if factor and number:
            found[f"ome.mpp-{axis.lower()}"] = str(number * factor)
    return found


def _resolution_tags(path: Path) -> dict[str, str]:
    """Return the resolution tags of a plain TIFF under OpenSlide's names."""
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags  # type: ignore[union-attr]
        found: dict[str, str] = {}
        for name in ("XResolution", "YResolution"):
            if name in tags and tags[name].value[1]:
                found[f"tiff.{name}"] = str(tags[name].value[0] / tags[name].value[1])
        if "ResolutionUnit" in tags:
            found["tiff.ResolutionUnit"] = tags["ResolutionUnit"].value.name.lower()
        return found
