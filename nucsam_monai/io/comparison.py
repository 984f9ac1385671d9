"""A picture of right and wrong: image, ground truth and prediction side by side."""

import math
from collections.abc import Collection

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nucsam_monai.io.overlay import check_same_plane, overlay_image
from nucsam_monai.utils.errors import ConfigurationError

TRUE_POSITIVE = (0, 150, 255)
FALSE_POSITIVE = (235, 95, 0)
MISSED = (240, 225, 0)
"""RGB of nuclei that were found, invented and missed; told apart by red-green and blue-yellow blind eyes."""

_SMALLEST_PANEL_PX = 320
_STRIP_HEIGHT_PX = 24
_GAP_PX = 4
_BACKGROUND = (24, 24, 24)
_TEXT = (235, 235, 235)
_FONT_SIZE_PX = 13


def comparison_overlay(
    image: np.ndarray,
    instances_true: np.ndarray,
    instances_predicted: np.ndarray,
    *,
    matched_true: Collection[int],
    matched_predicted: Collection[int],
    criterion: str = "IoU > 0.5",
) -> np.ndarray:
    """Put the image, the ground truth and the prediction beside each other, outlines coloured by outcome.

    Small images are enlarged by a whole factor so that outlines stay crisp and captions fit.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        instances_true: ``(H, W)`` integers, 0 = background.
        instances_predicted: ``(H, W)`` integers, 0 = background.
        matched_true: ids of ``instances_true`` that have a partner in the prediction.
        matched_predicted: ids of ``instances_predicted`` that have a partner in the ground truth.
        criterion: what the legend names as the rule of the match.

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
    """Return the image with outlines by outcome, the number of nuclei and that of unmatched nuclei."""
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
