"""Clicks and boxes of an annotator, as requests bring them."""

import math
from collections.abc import Mapping
from typing import Any

from nucsam_monai.apps.monailabel.refusals import RequestRefusedError
from nucsam_monai.inferers import Clicks, clicks_in_image
from nucsam_monai.utils.image_source import ImageSource

MOST_PROMPTS = 1000


def has_clicks(request: Mapping[str, Any]) -> bool:
    """Return whether a request brings clicks or boxes; clients send empty lists where there are none."""
    return any(request.get(key) for key in ("foreground", "background", "boxes"))


def clicks_of_request(request: Mapping[str, Any], source: ImageSource) -> Clicks:
    """Read ``foreground``, ``background`` and ``boxes`` of a request.

    A click is ``[x, y]``, or ``[x, y, slice]`` as 3D Slicer sends it, in pixels of full resolution; a box is
    ``[x_min, y_min, x_max, y_max]``.

    Raises:
        RequestRefusedError: not such lists, too many, or no click and no box at all.
        ConfigurationError: outside of the image, or a box below one pixel.
    """
    foreground, background = (_points(request.get(key), key, source) for key in ("foreground", "background"))
    boxes = _scaled(request.get("boxes"), "boxes", (4,), source)
    if not foreground and not boxes:
        raise RequestRefusedError(
            "no click: expected at least one point in 'foreground' or one box in 'boxes', for example "
            '{"foreground": [[31, 40]]}.'
        )
    return clicks_in_image((source.height, source.width), foreground, background, boxes)


def _points(value: Any, key: str, source: ImageSource) -> list[list[float]]:
    return [row[:2] for row in _scaled(value, key, (2, 3), source)]


def _scaled(value: Any, key: str, lengths: tuple[int, ...], source: ImageSource) -> list[list[float]]:
    """Return rows of numbers in pixels of the source."""
    return [[one / source.downsample for one in _numbers(row, key, lengths)] for row in _rows(value, key)]


def _rows(value: Any, key: str) -> list[Any]:
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise RequestRefusedError(f"{key}: expected a list, found {type(value).__name__}.")
    if len(value) > MOST_PROMPTS:
        raise RequestRefusedError(
            f"{key}: {len(value)} entries, expected at most {MOST_PROMPTS} in one request."
        )
    return value


def _numbers(row: Any, key: str, lengths: tuple[int, ...]) -> list[float]:
    numbers = [one for one in row if _is_number(one)] if isinstance(row, list) else []
    if len(numbers) not in lengths or len(numbers) != len(row):
        raise RequestRefusedError(f"{key}: found {str(row)[:60]}, expected {lengths[0]} numbers.")
    return [float(one) for one in numbers]


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < 1 << 40 and math.isfinite(value)
