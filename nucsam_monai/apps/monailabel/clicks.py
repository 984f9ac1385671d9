"""Clicks and boxes of an annotator, as requests bring them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.apps.monailabel.image_source import ImageSource
from nucsam_monai.apps.monailabel.refusals import RequestRefusedError

MOST_PROMPTS = 1000


@dataclass(frozen=True)
class Clicks:
    """What an annotator marked, in pixels of an image, pixel centres at integers.

    Attributes:
        foreground: ``(n, 2)`` float64 (x, y), one click on each of n nuclei.
        background: ``(m, 2)`` float64 (x, y) that belong to no clicked nucleus.
        boxes: ``(k, 4)`` float64 (x_min, y_min, x_max, y_max), one around each of k nuclei.
    """

    foreground: NDArray[np.float64]
    background: NDArray[np.float64]
    boxes: NDArray[np.float64]


def has_clicks(request: Mapping[str, Any]) -> bool:
    """Return whether a request brings clicks or boxes; clients send empty lists where there are none."""
    return any(request.get(key) for key in ("foreground", "background", "boxes"))


def clicks_of_request(request: Mapping[str, Any], source: ImageSource) -> Clicks:
    """Read ``foreground``, ``background`` and ``boxes`` of a request.

    A click is ``[x, y]``, or ``[x, y, slice]`` as 3D Slicer sends it, in pixels of full resolution; a box is
    ``[x_min, y_min, x_max, y_max]``.

    Raises:
        RequestRefusedError: not such lists, too many, outside of the image, or no click and no box at all.
    """
    foreground, background = (_points(request.get(key), key, source) for key in ("foreground", "background"))
    boxes = _boxes(request.get("boxes"), source)
    if not len(foreground) and not len(boxes):
        raise RequestRefusedError(
            "no click: expected at least one point in 'foreground' or one box in 'boxes', for example "
            '{"foreground": [[31, 40]]}.'
        )
    return Clicks(foreground, background, boxes)


def _points(value: Any, key: str, source: ImageSource) -> NDArray[np.float64]:
    points = [_numbers(row, key, (2, 3))[:2] for row in _rows(value, key)]
    return _inside(np.array(points, dtype=np.float64).reshape(-1, 2) / source.downsample, key, source)


def _boxes(value: Any, source: ImageSource) -> NDArray[np.float64]:
    rows = [_numbers(row, "boxes", (4,)) for row in _rows(value, "boxes")]
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 4) / source.downsample
    if (boxes[:, 2:] - boxes[:, :2] < 1).any():
        raise RequestRefusedError(
            "boxes: expected [x_min, y_min, x_max, y_max] of at least 1 pixel each way."
        )
    _inside((boxes[:, :2] + boxes[:, 2:]) / 2, "boxes", source)
    return np.clip(boxes, 0, [source.width - 1, source.height - 1] * 2)


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


def _inside(points: NDArray[np.float64], key: str, source: ImageSource) -> NDArray[np.float64]:
    # A pixel reaches half a pixel to each side of its centre.
    inside = ((points >= -0.5) & (points <= np.array([source.width, source.height]) - 0.5)).all(axis=1)
    if not inside.all():
        x, y = points[np.argmin(inside)]
        raise RequestRefusedError(
            f"{key}: ({x:g}, {y:g}) is outside of the image of {source.width} x {source.height} px."
        )
    return np.clip(points, 0, [source.width - 1, source.height - 1])
