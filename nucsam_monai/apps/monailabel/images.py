"""Open images and slides to read regions from; read and write label images in the viewers' formats."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nucsam_monai.apps.monailabel.refusals import RequestRefusedError
from nucsam_monai.io import (
    LABEL_MAP_SUFFIXES,
    SUPPORTED_SUFFIXES,
    read_image,
    read_label_map,
    write_label_image,
)
from nucsam_monai.io.decoders import DECODER_FAILURES, decode_itk, decode_nifti
from nucsam_monai.utils.errors import ImageReadError
from nucsam_monai.utils.files import atomic_path
from nucsam_monai.utils.image_source import ArrayImage, ImageSource, Region
from nucsam_monai.utils.instances import connected_components
from nucsam_monai.wsi.readers import ImageReader, SlideReader, pyramid_of

SLIDE_SUFFIXES = (".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".svslide", ".vms", ".vmu", ".tif", ".tiff")
"""Suffixes of files that OpenSlide may read; ``.tif`` and ``.tiff`` may be plain images as well."""

IMAGE_SUFFIXES = tuple(dict.fromkeys((*SUPPORTED_SUFFIXES, *SLIDE_SUFFIXES)))
"""Suffixes of all that can be segmented."""

_CACHE_BYTES = 1 << 28
_VOLUME_SUFFIXES = (".nrrd", ".nii.gz", ".nii", ".mha")
_LARGEST_UINT16 = int(np.iinfo(np.uint16).max)


class SlideImage(ImageSource):
    """Read one level of a slide.

    Args:
        reader: open slide.
        level: 0 is the full resolution.

    Raises:
        RequestRefusedError: there is no such level.
    """

    def __init__(self, reader: SlideReader, level: int = 0) -> None:
        highest = len(reader.levels) - 1
        if not 0 <= level <= highest:
            raise RequestRefusedError(f"level {level}: the slide has the levels 0..{highest}.")
        self.reader = reader
        self.level = level
        self.width, self.height, self.downsample = reader.levels[level]

    def read(self, region: Region) -> np.ndarray:
        """Read a region, see :meth:`ImageSource.read`."""
        return self.reader.read(self.level, *region)

    def close(self) -> None:
        """See :meth:`ImageSource.close`; the file is closed with the reader."""


class ImageOpener:
    """Open images and slides, and keep the last plain images, as clicks come one by one.

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
            path: path of the file.
            level: level of a slide.

        Raises:
            ImageReadError: it is damaged, too large or of an unknown format.
            RequestRefusedError: the image has no such level.
        """
        path = Path(path)
        is_candidate = path.suffix.lower() in SLIDE_SUFFIXES and path.is_file()
        if is_candidate and (reader := pyramid_of(path)) is not None:
            return SlideImage(reader, level)
        if level:
            raise RequestRefusedError(f"level {level}: this image has only level 0.")
        return ArrayImage(self._pixels(path))

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


def reader_of(source: ImageSource) -> tuple[SlideReader, int]:
    """Return what reads the slide of a source, and the level; a plain image is a slide of one level."""
    if isinstance(source, SlideImage):
        return source.reader, source.level
    pixels = source.read(Region(0, 0, source.width, source.height))
    return ImageReader(Path("image"), pixels), 0


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
    if not isinstance(value, (list, tuple)) or [type(one) for one in value] != [int, int]:
        raise RequestRefusedError(f"{name} {str(value)[:60]}: expected two whole numbers of pixels.")
    if max(map(abs, value)) > 1 << 40:
        raise RequestRefusedError(f"{name} {str(value)[:60]}: expected at most 2^40 pixels.")
    return value[0], value[1]


LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".nrrd", ".nii.gz", ".nii")
"""What a client may ask for as ``result_extension``; 3D Slicer asks for ``.nrrd``."""


READABLE_LABEL_SUFFIXES = (*LABEL_MAP_SUFFIXES, *_VOLUME_SUFFIXES)
"""Label images that annotators may save, those of 3D Slicer among them."""


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
        path: file with one of :data:`LABEL_SUFFIXES`.
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
        path: file with one of :data:`READABLE_LABEL_SUFFIXES`.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        ``(H, W)`` int32, 0 being background.

    Raises:
        ImageReadError: the file is damaged, too large, not a plane, or its values are not ids.
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
    """Return instances; in a map with a single id, a mask of all nuclei, the connected components are the nuclei."""
    ids = np.unique(label_map[label_map > 0])
    return connected_components(label_map > 0) if len(ids) == 1 else label_map
