"""Draw the outlines of nuclei on their image, and compare a prediction with the ground truth."""

import math
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_path
from nucsam_monai.utils.prediction import NucleiPrediction

PALETTE = np.array(
    [
        (0, 190, 60),  # green
        (0, 150, 255),  # blue
        (255, 130, 0),  # orange
        (0, 190, 190),  # cyan
        (200, 170, 0),  # dark yellow
        (255, 50, 50),  # red
        (130, 170, 60),  # olive
        (110, 130, 255),  # periwinkle
    ],
    dtype=np.uint8,
)
"""``(n, 3)`` RGB; medium lightness, because outlines have to stand out from bright and dark pixels alike."""

TRUE_POSITIVE = (0, 150, 255)
FALSE_POSITIVE = (235, 95, 0)
MISSED = (240, 225, 0)
"""RGB of found nuclei, false positives and missed nuclei; distinguishable for colour-blind readers."""

OVERLAY_PX = 2048
"""Longest side of an overlay by default: outlines are for a look, a large image as PNG takes tens of megabytes."""

_SMALLEST_PANEL_PX = 320
_STRIP_HEIGHT_PX = 24
_GAP_PX = 4
_BACKGROUND = (24, 24, 24)
_TEXT = (235, 235, 235)
_FONT_SIZE_PX = 13


def colours_of(indices: np.ndarray) -> np.ndarray:
    """Return colours of the palette, ``(n, 3)`` uint8 RGB, for ``(n,)`` integers; the palette repeats after eight.

    Example:
        >>> colours_of(np.array([0, 8])).tolist()
        [[0, 190, 60], [0, 190, 60]]
    """
    return PALETTE[np.asarray(indices) % len(PALETTE)]


def overlay_image(
    image: np.ndarray, instances: np.ndarray, *, colours: np.ndarray | None = None
) -> np.ndarray:
    """Draw the outline of every nucleus, one pixel wide and inside the nucleus.

    Args:
        image: ``(H, W, 3)`` uint8 RGB; not modified.
        instances: ``(H, W)`` integers, 0 = background.
        colours: ``(n, 3)`` uint8 RGB, one per nucleus in the order of the ids. Default: chosen by id.

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


def draw_prediction(
    prediction: NucleiPrediction, image: np.ndarray, longest_px: int | None = None
) -> np.ndarray:
    """Draw the outlines of nuclei, coloured by class if there are several classes, else by nucleus.

    Args:
        prediction: nuclei of the image.
        image: ``(H, W, 3)`` uint8 RGB; not modified.
        longest_px: longest side length of the result in pixels; larger images are reduced before outlines are drawn.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        ConfigurationError: the image has another size or type, or ``longest_px`` is not positive.
    """
    check_same_plane(image, prediction.instances)
    instances, table = prediction.instances, prediction.table
    if longest_px is not None and longest_px < 1:
        raise ConfigurationError(f"overlay_px {longest_px}: expected the pixels of the longest side.")
    if longest_px is not None and longest_px < max(image.shape[:2]):
        height, width = (max(1, round(side * longest_px / max(image.shape[:2]))) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        instances = cv2.resize(instances, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        table = table[np.isin(table["id"], instances)]  # the smallest nuclei may have vanished
    has_classes = len(prediction.class_names) > 1
    return overlay_image(image, instances, colours=colours_of(table["class_id"]) if has_classes else None)


def outline_mask(instances: np.ndarray) -> np.ndarray:
    """Return ``(H, W)`` booleans: the pixels of nuclei with one of their four neighbours outside the nucleus.

    Pixels beyond the border of the image count as outside.
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
    """Check that an image is ``(H, W, 3)`` uint8 and a label map ``(H, W)`` integers of the same size.

    Raises:
        ConfigurationError: one of them is not.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ConfigurationError(f"image: expected (H, W, 3) uint8, found {image.shape} of {image.dtype}.")
    if instances.shape != image.shape[:2] or not np.issubdtype(instances.dtype, np.integer):
        raise ConfigurationError(
            f"instances: expected {image.shape[:2]} integers like the image, "
            f"found {instances.shape} of {instances.dtype}."
        )


def write_png(path: Path | str, image: np.ndarray) -> None:
    """Write ``(H, W, 3)`` uint8 RGB as PNG; the file is written completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_png(image))


def encode_png(image: np.ndarray) -> bytes:
    """Encode ``(H, W, 3)`` uint8 RGB as PNG."""
    # OpenCV's encoder takes a quarter of Pillow's time for files of the same size.
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return bytes(encoded.tobytes())


def comparison_overlay(
    image: np.ndarray,
    instances_true: np.ndarray,
    instances_predicted: np.ndarray,
    *,
    matched_true: Collection[int],
    matched_predicted: Collection[int],
    criterion: str = "IoU > 0.5",
) -> np.ndarray:
    """Draw image, ground truth and prediction side by side, with the outlines of matched and unmatched nuclei.

    Small images are enlarged by an integer factor so that outlines stay sharp and captions fit.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        instances_true: ``(H, W)`` integers, 0 = background.
        instances_predicted: ``(H, W)`` integers, 0 = background.
        matched_true: ids of ``instances_true`` that match a predicted nucleus.
        matched_predicted: ids of ``instances_predicted`` that match a nucleus of the ground truth.
        criterion: the matching criterion, shown in the legend.

    Returns:
        ``(H', W', 3)`` uint8: three panels with a caption above each and a legend below.

    Raises:
        ConfigurationError: shapes or types do not fit each other, or a matched id is not in its map.
    """
    check_same_plane(image, instances_true)
    check_same_plane(image, instances_predicted)
    factor = math.ceil(_SMALLEST_PANEL_PX / max(image.shape[:2]))
    image, instances_true, instances_predicted = (
        array.repeat(factor, axis=0).repeat(factor, axis=1)
        for array in (image, instances_true, instances_predicted)
    )
    truth, true_count, missed_count = _outcome_panel(
        image, instances_true, matched_true, MISSED, name="matched_true"
    )
    prediction, predicted_count, false_count = _outcome_panel(
        image, instances_predicted, matched_predicted, FALSE_POSITIVE, name="matched_predicted"
    )
    panels = (
        ("image", image),
        (f"ground truth: {true_count} nuclei, {missed_count} missed", truth),
        (f"prediction: {predicted_count} nuclei, {false_count} false positive", prediction),
    )
    legend = (
        (f"true positive ({criterion})", TRUE_POSITIVE),
        ("false positive", FALSE_POSITIVE),
        ("missed", MISSED),
    )
    return _compose(panels, legend)


def _outcome_panel(
    image: np.ndarray,
    instances: np.ndarray,
    matched: Collection[int],
    unmatched_colour: tuple[int, int, int],
    *,
    name: str,
) -> tuple[np.ndarray, int, int]:
    """Return the image with outlines by outcome, the number of nuclei and the number of unmatched nuclei."""
    ids = np.unique(instances)
    ids = ids[ids != 0]
    unknown = sorted(set(matched) - set(ids.tolist()))
    if unknown:
        raise ConfigurationError(f"{name}: ids {unknown[:5]} are not in the label map.")
    is_matched = np.isin(ids, list(matched))
    colours = np.where(is_matched[:, np.newaxis], TRUE_POSITIVE, unmatched_colour).astype(np.uint8)
    return overlay_image(image, instances, colours=colours), len(ids), int((~is_matched).sum())


def _compose(
    panels: tuple[tuple[str, np.ndarray], ...], legend: tuple[tuple[str, tuple[int, int, int]], ...]
) -> np.ndarray:
    """Lay captioned panels in a row over a legend."""
    height, width = panels[0][1].shape[:2]
    column = max(width, _SMALLEST_PANEL_PX)
    canvas_size = (
        len(panels) * column + (len(panels) + 1) * _GAP_PX,
        height + 2 * _STRIP_HEIGHT_PX,
    )
    canvas = Image.new("RGB", canvas_size, _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=_FONT_SIZE_PX)
    middle_of_strip = _STRIP_HEIGHT_PX // 2
    for index, (caption, panel) in enumerate(panels):
        left = _GAP_PX + index * (column + _GAP_PX)
        draw.text((left, middle_of_strip), caption, fill=_TEXT, font=font, anchor="lm")
        canvas.paste(Image.fromarray(panel), (left, _STRIP_HEIGHT_PX))
    left, middle = _GAP_PX, height + _STRIP_HEIGHT_PX + middle_of_strip
    for text, colour in legend:
        draw.rectangle((left, middle - 5, left + 10, middle + 5), fill=colour)
        draw.text((left + 16, middle), text, fill=_TEXT, font=font, anchor="lm")
        left += 16 + int(draw.textlength(text, font=font)) + 24
    return np.array(canvas)
