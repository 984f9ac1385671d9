"""Images and slides as something to read regions from."""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from monai.utils import optional_import

from nucsam_monai.apps.monailabel.refusals import RequestRefusedError
from nucsam_monai.io import SUPPORTED_SUFFIXES, read_image
from nucsam_monai.utils.image_source import ArrayImage, ImageSource, Region

logger = logging.getLogger(__name__)

SLIDE_SUFFIXES = (".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".svslide", ".vms", ".vmu", ".tif", ".tiff")
"""Suffixes of files that OpenSlide may read; ``.tif`` and ``.tiff`` may be plain images as well."""

IMAGE_SUFFIXES = tuple(dict.fromkeys((*SUPPORTED_SUFFIXES, *SLIDE_SUFFIXES)))
"""Suffixes of all that can be segmented."""

_CACHE_BYTES = 1 << 28


class SlideImage(ImageSource):
    """One level of a slide; where a slide is transparent it is white.

    Args:
        slide: an open ``openslide.OpenSlide``.
        level: 0 is the full resolution.

    Raises:
        RequestRefusedError: there is no such level.
    """

    def __init__(self, slide: Any, level: int = 0) -> None:
        highest = slide.level_count - 1
        if not 0 <= level <= highest:
            slide.close()
            raise RequestRefusedError(f"level {level}: the slide has the levels 0..{highest}.")
        self.slide = slide
        self.level = level
        self.width, self.height = slide.level_dimensions[level]
        self.downsample = float(slide.level_downsamples[level])

    def read(self, region: Region) -> np.ndarray:
        """See :meth:`ImageSource.read`."""
        corner = (round(region.x * self.downsample), round(region.y * self.downsample))
        rgba = np.asarray(self.slide.read_region(corner, self.level, (region.width, region.height)))
        colour, alpha = rgba[..., :3], rgba[..., 3:]
        if (alpha == 255).all():
            return np.ascontiguousarray(colour)
        mixed = colour * (alpha / 255.0) + 255.0 - alpha
        return (mixed + 0.5).astype(np.uint8)

    def close(self) -> None:
        """See :meth:`ImageSource.close`."""
        self.slide.close()


class ImageOpener:
    """Opens images and slides, and keeps the last plain images, as clicks come one by one.

    Args:
        max_pixels: larger plain images are refused before they are decoded; slides may have any size.
    """

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._kept: OrderedDict[tuple[str, int, int], np.ndarray] = OrderedDict()
        self._lock = Lock()

    def open(self, path: Path | str, level: int = 0) -> ImageSource:
        """Open an image.

        Args:
            path: the file.
            level: of a slide.

        Raises:
            ImageReadError: it is damaged, too large or of an unknown format.
            RequestRefusedError: the image has no such level.
        """
        slide = open_slide(Path(path))
        if slide is not None:
            return SlideImage(slide, level)
        if level:
            raise RequestRefusedError(f"level {level}: this image has level 0 alone.")
        return ArrayImage(self._pixels(Path(path)))

    def _pixels(self, path: Path) -> np.ndarray:
        if not path.is_file():
            raise RequestRefusedError(f"{path.name}: no such image.", 404)
        facts = path.stat()
        key = (str(path), facts.st_mtime_ns, facts.st_size)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        pixels = read_image(path, max_pixels=self.max_pixels)
        with self._lock:
            self._kept[key] = pixels
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > _CACHE_BYTES:
                self._kept.popitem(last=False)
        return pixels


def open_slide(path: Path) -> Any:
    """Return an open slide, or None where OpenSlide is not installed or cannot read the file as one."""
    if path.suffix.lower() not in SLIDE_SUFFIXES or not path.is_file():
        return None
    openslide, installed = optional_import("openslide")
    if not installed:
        logger.warning("%s: OpenSlide is not installed, so that it is read as a plain image.", path.name)
        return None
    if openslide.OpenSlide.detect_format(str(path)) is None:
        return None
    try:
        return openslide.OpenSlide(str(path))
    except openslide.OpenSlideError as error:
        raise RequestRefusedError(f"{path.name}: damaged slide ({error}).", 422) from error


def region_of_request(request: Mapping[str, Any], source: ImageSource) -> Region:
    """Return the region that a request names by ``location`` and ``size``, cut off at the image's border.

    Args:
        request: ``location`` is (x, y) at full resolution, ``size`` (width, height) in pixels of ``source``;
            without a size, or with (0, 0), all to the right and below.
        source: the image.

    Raises:
        RequestRefusedError: not two whole numbers each, or nothing of the image is in the region.
    """
    x, y = (int(part / source.downsample) for part in _pair(request.get("location") or (0, 0), "location"))
    width, height = _pair(request.get("size") or (0, 0), "size")
    if width < 0 or height < 0:
        raise RequestRefusedError(f"size ({width}, {height}): expected 0 or more pixels.")
    left, top = max(x, 0), max(y, 0)
    right = min(x + width, source.width) if width else source.width
    bottom = min(y + height, source.height) if height else source.height
    if right <= left or bottom <= top:
        raise RequestRefusedError(
            f"location ({x}, {y}), size ({width}, {height}): outside of the image of "
            f"{source.width} x {source.height} px."
        )
    return Region(left, top, right - left, bottom - top)


def _pair(value: Sequence[Any], name: str) -> tuple[int, int]:
    numbers = (
        [one for one in value if isinstance(one, int) and not isinstance(one, bool)]
        if _is_list(value)
        else []
    )
    if len(numbers) != 2 or len(value) != 2 or max(map(abs, numbers)) > 1 << 40:
        raise RequestRefusedError(f"{name} {str(value)[:60]}: expected two whole numbers of pixels.")
    return numbers[0], numbers[1]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
