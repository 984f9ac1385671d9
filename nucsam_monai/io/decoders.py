"""Decode single-plane images: every decoder returns ``(H, W)`` or ``(H, W, 3)`` pixels of the file's own type.

Rows are y, counted downwards, and columns are x in every format. NIfTI, NRRD and MetaImage store x first
(array axis 0 is x); their decoders swap the two. The EXIF orientation of PNG, JPEG and TIFF files is applied, so that
images are as viewers show them; directions and affines in other headers are not.
"""

import lzma
import math
import struct
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin

from nucsam_monai.utils.errors import ImageReadError

Decoder = Callable[[Path, int], np.ndarray]

DECODER_FAILURES = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
"""What the decoders raise on damaged files. Each library has several ways; the tests' corpus found these."""

_ROWS_AT_ONCE = 256
_PHOTOMETRIC_MINISBLACK = 1
_PHOTOMETRIC_RGB = 2
_COLOURS_OF_PHOTOMETRIC = {0: 1, _PHOTOMETRIC_MINISBLACK: 1, _PHOTOMETRIC_RGB: 3, 3: 1, 6: 3}
"""Samples that the TIFF photometrics white-is-zero, black-is-zero, RGB, palette and YCbCr use."""
_ALPHA = ((tifffile.EXTRASAMPLE.ASSOCALPHA,), (tifffile.EXTRASAMPLE.UNASSALPHA,))
_EXTRA_WITHOUT_TAG = {(_PHOTOMETRIC_RGB, 4): _ALPHA[1]}  # as OpenCV writes RGBA


class ImageTooLargeError(ImageReadError):
    """An image has more pixels than allowed.

    Attributes:
        width: width of the image in pixels.
        height: height of the image in pixels.
    """

    def __init__(self, where: Path | str, width: int, height: int, max_pixels: int) -> None:
        super().__init__(
            f"{where}: {width} x {height} pixels are more than the allowed {max_pixels}. "
            "Cut the image into tiles, or raise max_pixels."
        )
        self.width, self.height = width, height


def check_pixel_count(where: Path | str, width: int, height: int, max_pixels: int) -> None:
    """Raise :class:`ImageTooLargeError` if an image has more than ``max_pixels``, before it is decoded."""
    if width * height > max_pixels:
        raise ImageTooLargeError(where, width, height, max_pixels)


def pillow_decoder(plugin: type[ImageFile.ImageFile]) -> Decoder:
    """Return a decoder for one Pillow format; alpha is dropped, palettes and CMYK become RGB.

    The plugin is called directly because ``PIL.Image.open`` chooses the format by content and has its own limit on
    pixels, which is global to the process.
    """

    def decode(path: Path, max_pixels: int) -> np.ndarray:
        with plugin(path) as image:
            check_pixel_count(path, image.width, image.height, max_pixels)
            has_wide_values = image.mode in ("I", "F") or image.mode.startswith("I;16")
            has_wide_colours = ";16" in str(image.tile) and not has_wide_values
            image.load()
            if has_wide_colours:
                return _decode_wide_colours(path, image)
            ImageOps.exif_transpose(image, in_place=True)  # Pillow turns TIFF itself and takes the tag away
            return np.array(image) if has_wide_values else _colours_of(image)

    return decode


def _colours_of(image: Image.Image) -> np.ndarray:
    """Convert an image to RGB in strips, because Pillow would hold two copies of the whole image in memory."""
    result = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, _ROWS_AT_ONCE):
        strip = image.crop((0, top, image.width, min(top + _ROWS_AT_ONCE, image.height)))
        result[top : top + _ROWS_AT_ONCE] = np.asarray(strip.convert("RGB"))
    return result


def _decode_wide_colours(path: Path, image: Image.Image) -> np.ndarray:
    """Decode 16-bit colours with OpenCV, because Pillow keeps only the high byte; alpha is dropped.

    Args:
        path: image file.
        image: the same image decoded by Pillow, which notices damage that OpenCV ignores.
    """
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)  # turns TIFF itself, PNG not
    if pixels is None:
        raise ValueError("16-bit colours that OpenCV cannot decode")
    return upright(pixels[..., 2::-1], image.getexif().get(ExifTags.Base.Orientation, 1))


_decode_tiff_with_pillow = pillow_decoder(TiffImagePlugin.TiffImageFile)


def decode_tiff(path: Path, max_pixels: int) -> np.ndarray:
    """Decode the first image of a TIFF; later images of another size (thumbnails, pyramid levels) are ignored.

    Raises:
        ImageReadError: the first image is a stack (z, time, channels as planes) or too large.
    """
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        axes = {
            axis: size
            for axis, size in zip(series.axes, series.shape, strict=True)
            if size != 1 or axis in "YX"
        }
        if not {"Y", "X"} <= set(axes) <= {"Y", "X", "S"}:
            raise ImageReadError(
                f"{path}: the first image has axes {series.axes} of sizes {series.shape}, "
                "expected one 2-D image. Export one plane as grey or RGB."
            )
        check_pixel_count(path, axes["X"], axes["Y"], max_pixels)
        page = series.keyframe
        colours = _COLOURS_OF_PHOTOMETRIC.get(page.photometric, page.samplesperpixel)
        extra = page.extrasamples or _EXTRA_WITHOUT_TAG.get((page.photometric, page.samplesperpixel), ())
        if page.samplesperpixel > colours and extra not in _ALPHA:
            raise ImageReadError(
                f"{path}: {page.samplesperpixel} channels, of which the file calls {colours} grey or colour and none "
                "transparency. Export the channel of the nuclei alone, or RGB."
            )
        is_plain = page.photometric in (_PHOTOMETRIC_MINISBLACK, _PHOTOMETRIC_RGB) and page.bitspersample >= 8
        if is_plain:
            try:
                pixels = _samples_last(series.asarray(), series.axes, path)
                tag = page.tags.get(ExifTags.Base.Orientation)
                return upright(pixels, int(tag.value) if tag else 1)
            except ValueError as error:
                # LZW, JPEG and others need a codec package; libtiff inside Pillow has them.
                if "imagecodecs" not in str(error):
                    raise
    return _decode_tiff_with_pillow(path, max_pixels)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation (1 to 8, 1 is upright) to ``(H, W)`` or ``(H, W, C)``."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _samples_last(pixels: np.ndarray, axes: str, path: Path) -> np.ndarray:
    """Rearrange TIFF samples to ``(H, W)`` or ``(H, W, 3)`` and drop alpha."""
    for axis in sorted((index for index, name in enumerate(axes) if name not in "YXS"), reverse=True):
        pixels = pixels.squeeze(axis)
    kept = "".join(name for name in axes if name in "YXS")
    if "S" not in kept:
        return pixels
    return _drop_alpha(np.moveaxis(pixels, kept.index("S"), -1), path)


def _drop_alpha(pixels: np.ndarray, path: Path) -> np.ndarray:
    """Turn ``(H, W, C)`` of grey (1), grey and alpha (2), RGB (3) or RGBA (4) into grey or RGB."""
    channels = pixels.shape[-1]
    if channels not in (1, 2, 3, 4):
        raise ImageReadError(
            f"{path}: expected 1 to 4 samples per pixel, found {channels}. Export grey or RGB."
        )
    return pixels[..., 0] if channels <= 2 else pixels[..., :3]


def decode_nifti(path: Path, max_pixels: int) -> np.ndarray:
    """Decode a 2-D NIfTI image with MONAI's ``NibabelReader``.

    The array is ``(W, H)``, ``(W, H, 1)`` or, in colour, ``(W, H, 1, 3)`` or of NIfTI's RGB24 type.

    Raises:
        ImageReadError: the image is a volume or too large, or NiBabel is not installed.
    """
    _require("nibabel", path)
    from monai.data.image_reader import NibabelReader
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    reader = NibabelReader()
    try:
        image = reader.read(path)
        _check_plane(path, image.shape[:3], math.prod(image.shape[3:]), max_pixels, has_alpha=False)
        pixels, meta = reader.get_data(image)
    except (ImageFileError, HeaderDataError) as error:
        raise ValueError(str(error)) from error
    if pixels.dtype.names is not None:  # RGB24 and RGBA32 are records of bytes
        pixels = np.stack([pixels[name] for name in pixels.dtype.names], axis=-1)
    return _plane_with_rows_first(pixels, len(meta["spatial_shape"]), path)


def decode_itk(path: Path, max_pixels: int) -> np.ndarray:
    """Decode a 2-D NRRD or MetaImage file with MONAI's ``ITKReader``.

    Raises:
        ImageReadError: the file has another format, the image is a volume or too large, or ITK is not installed.
    """
    _require("itk", path)
    import itk
    from monai.data.image_reader import ITKReader

    header = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if header is None or header.GetNameOfClass() not in ("NrrdImageIO", "MetaImageIO"):
        raise ImageReadError(f"{path}: the content is neither NRRD nor MetaImage.")
    header.SetFileName(str(path))
    header.ReadImageInformation()
    sizes = tuple(header.GetDimensions(axis) for axis in range(header.GetNumberOfDimensions()))
    has_alpha = header.GetPixelType() == itk.CommonEnums.IOPixel_RGBA
    _check_plane(path, sizes, header.GetNumberOfComponents(), max_pixels, has_alpha=has_alpha)
    reader = ITKReader(**_itk_pixel_type(header))
    pixels, meta = reader.get_data(reader.read(path))
    return _plane_with_rows_first(pixels, len(meta["spatial_shape"]), path)


def _require(package: str, path: Path) -> None:
    """Raise if the package that reads a format is not installed; it is in the extra ``formats``."""
    if find_spec(package) is None:
        raise ImageReadError(
            f"{path}: this format is read by {package}, which is not installed. "
            "Run: pip install 'nucsam-monai[formats]'."
        )


def _itk_pixel_type(header: Any) -> dict[str, Any]:
    """Name the pixel type of colour images; ITK's own choice, a vector of bytes, is not in its Python package."""
    import itk

    components = header.GetNumberOfComponents()
    if components == 1:
        return {}
    if components in (3, 4) and header.GetComponentType() == itk.CommonEnums.IOComponent_UCHAR:
        return {"pixel_type": (itk.RGBPixel if components == 3 else itk.RGBAPixel)[itk.UC]}
    return {"pixel_type": itk.Vector[itk.F, components]}


def _check_plane(
    path: Path, sizes: tuple[int, ...], channels: int, max_pixels: int, *, has_alpha: bool
) -> None:
    """Raise for volumes and images that are too large; ``sizes`` are those of x, y and other spatial axes."""
    if len(sizes) < 2 or math.prod(sizes[2:]) != 1:
        raise ImageReadError(
            f"{path}: expected a 2-D image, found axes of sizes {tuple(sizes)}. Export one slice."
        )
    if channels not in (1, 3) and not (channels == 4 and has_alpha):
        raise ImageReadError(
            f"{path}: expected grey, RGB or RGBA, found {channels} channels. Export the channel of the nuclei alone, "
            "or RGB."
        )
    check_pixel_count(path, sizes[0], sizes[1], max_pixels)


def _plane_with_rows_first(pixels: np.ndarray, spatial_rank: int, path: Path) -> np.ndarray:
    """Turn ``(W, H, 1..., C...)`` into ``(H, W)`` or ``(H, W, 3)``."""
    channels = math.prod(pixels.shape[spatial_rank:])
    return _drop_alpha(pixels.reshape(*pixels.shape[:2], channels).swapaxes(0, 1), path)
