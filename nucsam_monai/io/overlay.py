"""Outlines of nuclei drawn on their image."""

from pathlib import Path

import cv2
import numpy as np

from nucsam_monai.io.palette import colours_of
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_path
from nucsam_monai.utils.prediction import NucleiPrediction


def overlay_image(
    image: np.ndarray, instances: np.ndarray, *, colours: np.ndarray | None = None
) -> np.ndarray:
    """Draw the outline of every nucleus, one pixel wide and inside the nucleus.

    Args:
        image: ``(H, W, 3)`` uint8 RGB; it is not changed.
        instances: ``(H, W)`` integers, 0 = background.
        colours: ``(n, 3)`` uint8 RGB per nucleus in the order of their ids. Default: a colour that follows
            from the id, so that neighbours mostly differ and runs agree.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        ConfigurationError: shapes or types do not fit each other.
    """
    check_same_plane(image, instances)
    rows, columns = np.nonzero(outline_mask(instances))
    # Every nucleus has outline pixels, so these ids are all ids.
    ids, nucleus = np.unique(instances[rows, columns], return_inverse=True)
    if colours is None:
        colours = colours_of(ids)
    if np.shape(colours) != (len(ids), 3):
        raise ConfigurationError(
            f"colours: expected one RGB colour per nucleus, ({len(ids)}, 3), found {np.shape(colours)}."
        )
    drawn = image.copy()
    drawn[rows, columns] = colours[nucleus]
    return drawn


def draw_prediction(prediction: NucleiPrediction, image: np.ndarray) -> np.ndarray:
    """Draw the outlines of nuclei, coloured by class, or by nucleus where there is only one class.

    Args:
        prediction: the nuclei.
        image: ``(H, W, 3)`` uint8 RGB; it is not changed.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        ConfigurationError: the image is of another size or type.
    """
    has_classes = len(prediction.class_names) > 1
    colours = colours_of(prediction.table["class_id"]) if has_classes else None
    return overlay_image(image, prediction.instances, colours=colours)


def outline_mask(instances: np.ndarray) -> np.ndarray:
    """Return ``(H, W)`` booleans: pixels of a nucleus that have one of four neighbours outside of it.

    What lies beyond the image's border counts as outside the nucleus.
    """
    height, width = instances.shape
    is_outline = np.zeros((height, width), dtype=bool)
    is_outline[[0, -1], :] = True
    is_outline[:, [0, -1]] = True
    differs = instances[1:] != instances[:-1]
    is_outline[1:] |= differs
    is_outline[:-1] |= differs
    differs = instances[:, 1:] != instances[:, :-1]
    is_outline[:, 1:] |= differs
    is_outline[:, :-1] |= differs
    return is_outline & (instances != 0)


def check_same_plane(image: np.ndarray, instances: np.ndarray) -> None:
    """Refuse an image that is not ``(H, W, 3)`` uint8 or a label map that is not ``(H, W)`` of the same size.

    Raises:
        ConfigurationError: with the shapes and types that were found.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ConfigurationError(f"image: expected (H, W, 3) uint8, found {image.shape} of {image.dtype}.")
    if instances.shape != image.shape[:2] or not np.issubdtype(instances.dtype, np.integer):
        raise ConfigurationError(
            f"instances: expected {image.shape[:2]} integers like the image, "
            f"found {instances.shape} of {instances.dtype}."
        )


def write_png(path: Path | str, image: np.ndarray) -> None:
    """Write ``(H, W, 3)`` uint8 RGB as PNG; the file appears complete or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_png(image))


def encode_png(image: np.ndarray) -> bytes:
    """Return ``(H, W, 3)`` uint8 RGB as the content of a PNG file."""
    # OpenCV's encoder takes a quarter of Pillow's time for files of the same size.
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return bytes(encoded.tobytes())
