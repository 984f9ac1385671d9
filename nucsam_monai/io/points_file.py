"""Read clicked points from a JSON file, and check them before anything is segmented."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nucsam_monai.utils.errors import DatasetError

BACKGROUND, FOREGROUND = 0, 1


class Point(NamedTuple):
    """Hold a click in an image.

    Attributes:
        x_px: column; 0 is the centre of the leftmost pixels.
        y_px: row; 0 is the centre of the topmost pixels.
        label: 1 for a nucleus, 0 for background.
    """

    x_px: float
    y_px: float
    label: int = FOREGROUND


class _Object(tuple[tuple[str, Any], ...]):
    """Hold a JSON object as pairs, so that duplicate names can be detected."""


def read_points(path: Path | str) -> dict[str, list[Point]]:
    """Read the clicked points of each image from a JSON file.

    The file holds an object whose keys are image names and whose values are lists of ``[x, y]`` or ``[x, y, label]``
    in pixels of the image, for example ``{"tile.png": [[31, 40], [102.5, 17, 0]]}``. The label is 1 for a nucleus
    (default) or 0 for background.

    Args:
        path: JSON file in UTF-8.

    Raises:
        DatasetError: the file is missing or is not JSON, names an image twice, or has an entry of another form.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_Object)
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror}). Correct the path of the points."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not valid JSON ({error}). Correct the file.") from error
    if not isinstance(document, _Object):
        raise DatasetError(f'{path}: expected an object like {{"tile.png": [[31, 40], [102, 17, 0]]}}.')
    for name, uses in Counter(name for name, _ in document).items():
        if uses > 1:
            raise DatasetError(
                f"{path}: '{name}' is named {uses} times. Put all points of an image in one list."
            )
    return {name: _points(entries, f"{path}: '{name}'") for name, entries in document}


def points_by_id(
    points: Mapping[str, Sequence[Point]], items: Sequence[Mapping[str, Any]]
) -> dict[str, list[Point]]:
    """Assign points to the images they belong to.

    Args:
        points: points under the file name or id of their image, see :func:`read_points`.
        items: images, each with ``image`` (path) and a unique ``id``.

    Returns:
        The points under the ids of the images.

    Raises:
        DatasetError: a name fits no image or several images, or two names mean the same image.
    """
    found: dict[str, list[Point]] = {}
    for name, own in points.items():
        ids = [item["id"] for item in items if name in (item["id"], Path(item["image"]).name)]
        if not ids:
            known = ", ".join(Path(item["image"]).name for item in items[:3])
            raise DatasetError(
                f"points of '{name}': no such image among the {len(items)} of the input ({known}"
                f"{', ...' if len(items) > 3 else ''}). Name an image by its file name or id."
            )
        if len(ids) > 1:
            raise DatasetError(
                f"points of '{name}': {len(ids)} images have that name. Name one by id: {', '.join(ids)}."
            )
        if ids[0] in found:
            raise DatasetError(
                f"points of '{name}': the image is named twice, by file name and by id. Keep one."
            )
        found[ids[0]] = list(own)
    return found


def require_inside(points: Sequence[Point], height_px: int, width_px: int, image: str) -> None:
    """Check that all points lie inside their image.

    Raises:
        DatasetError: a point lies outside.
    """
    for number, point in enumerate(points):
        if not (-0.5 <= point.x_px <= width_px - 0.5 and -0.5 <= point.y_px <= height_px - 0.5):
            raise DatasetError(
                f"points of '{image}': point {number} at x {point.x_px:g}, y {point.y_px:g} is outside of the image, "
                f"which is {width_px} x {height_px} px (width x height). Give [x, y] in its own pixels."
            )


def _points(entries: Any, where: str) -> list[Point]:
    """Check the points of one image."""
    if not isinstance(entries, list):
        raise DatasetError(f"{where}: expected a list of [x, y] or [x, y, label], found {entries!r}.")
    return [_point(entry, f"{where}, point {number}") for number, entry in enumerate(entries)]


def _point(entry: Any, where: str) -> Point:
    if not isinstance(entry, list) or len(entry) not in (2, 3):
        raise DatasetError(f"{where}: expected [x, y] or [x, y, label], found {entry!r}.")
    x, y, *rest = entry
    if not _is_finite_number(x) or not _is_finite_number(y):
        raise DatasetError(f"{where}: expected two finite numbers, found {x!r} and {y!r}.")
    label = rest[0] if rest else FOREGROUND
    if type(label) is not int or label not in (BACKGROUND, FOREGROUND):
        raise DatasetError(f"{where}: label {label!r}, expected 1 (nucleus) or 0 (background).")
    return Point(float(x), float(y), label)


def _is_finite_number(value: Any) -> bool:
    # bool is an int to isinstance; an int may be too large for a float
    return type(value) in (int, float) and abs(value) < 2**31 and math.isfinite(value)
