"""Write nuclei as GeoJSON that QuPath (0.4 and later) opens; their outlines run along the corners of their pixels."""

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from nucsam_monai.io.overlay import colours_of
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_path
from nucsam_monai.utils.prediction import NucleiPrediction

ObjectType = Literal["detection", "annotation"]

_ID_NAMESPACE = uuid.UUID("6f0d2f6e-5f0c-5e0a-9c57-3d1f0b8b6a51")

Ring = list[list[int]]
"""Closed ring of ``[x, y]`` pixel corners; the last point repeats the first."""

Polygon = list[Ring]
"""Exterior ring followed by the rings of the holes."""

_PIXELS_AT_ONCE = 2**20

# A crack is a side of a pixel of the mask that faces a pixel outside, walked with the mask to the right: 0 the left
# side up, 1 the upper side to the right, 2 the right side down, 3 the lower side to the left. The pixel outside lies
# one step in the direction before.
_STEP_X, _STEP_Y = np.array([0, 1, 0, -1]), np.array([-1, 0, 1, 0])
_END_X, _END_Y = np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1])


def write_geojson(
    path: Path | str, prediction: NucleiPrediction, *, name: str, object_type: ObjectType = "detection"
) -> None:
    """Write the nuclei as a GeoJSON ``FeatureCollection``, one feature per line, streamed.

    Args:
        path: the file, ``.geojson``; it appears complete or not at all.
        prediction: the nuclei.
        name: what the nuclei belong to, usually the image's stem; the ids of the features follow from it.
        object_type: QuPath's kind of object. Detections stay fast for a million nuclei; annotations can be
            edited.

    Raises:
        ConfigurationError: an unknown ``object_type``.
    """
    if object_type not in ("detection", "annotation"):
        raise ConfigurationError(f"object_type: expected 'detection' or 'annotation', found {object_type!r}.")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for feature in nuclei_features(prediction, name=name, object_type=object_type):
            file.write(separator + json.dumps(feature, separators=(",", ":"), allow_nan=False))
            separator = ",\n"
        file.write("\n]}\n")


def nuclei_features(
    prediction: NucleiPrediction, *, name: str, object_type: ObjectType = "detection"
) -> Iterator[dict[str, object]]:
    """Yield one GeoJSON feature per nucleus.

    Coordinates are pixel corners: the image covers 0..W and 0..H, and the area of a geometry is the
    nucleus's number of pixels (see :func:`nucsam_monai.io.geojson.mask_polygons`). A nucleus of one
    4-connected part is a Polygon, with its holes; of several parts, a MultiPolygon.

    Args:
        prediction: the nuclei.
        name: seed of the features' ids: equal name and nucleus id give the same UUID (version 5).
        object_type: QuPath's kind of object.

    Yields:
        Feature with ``id``, ``geometry`` and ``properties``: ``objectType``, ``classification`` and the
        ``measurements`` ``id``, ``area_px`` and ``score``.
    """
    colours = colours_of(np.arange(len(prediction.class_names))).tolist()
    classes = [
        {"name": class_name, "color": colour}
        for class_name, colour in zip(prediction.class_names, colours, strict=True)
    ]
    polygons_by_nucleus = nuclei_polygons(prediction.instances, prediction.table)
    measured = prediction.table[["class_id", "area_px", "score"]].tolist()
    for (nucleus_id, polygons), (class_id, area_px, score) in zip(polygons_by_nucleus, measured, strict=True):
        is_single = len(polygons) == 1
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(_ID_NAMESPACE, f"{name}/{nucleus_id}")),
            "geometry": {
                "type": "Polygon" if is_single else "MultiPolygon",
                "coordinates": polygons[0] if is_single else polygons,
            },
            "properties": {
                "objectType": object_type,
                "classification": classes[class_id],
                "measurements": {"id": nucleus_id, "area_px": area_px, "score": round(score, 6)},
            },
        }


@dataclass(frozen=True)
class _BoundaryRings:
    """Boundaries of one mask.

    Attributes:
        exteriors: rings around parts of it, in the order of their uppermost and leftmost pixels: ``(n, 2)`` x and y of
            pixel corners, of which the last is the first again.
        holes: rings around holes, in the opposite sense.
        touch_at_corners: two of its pixels share a corner but no neighbour; the rings treat them as connected.
    """

    exteriors: list[np.ndarray] = field(default_factory=list)
    holes: list[np.ndarray] = field(default_factory=list)
    touch_at_corners: bool = False


def _trace_boundaries(
    masks: Sequence[np.ndarray], origins: Sequence[tuple[int, int]]
) -> list[_BoundaryRings]:
    """Trace the boundaries of masks; array operations serve all of them together.

    Args:
        masks: ``(h, w)`` each, 0 or 1.
        origins: x and y of the first pixel of each.

    Returns:
        The rings of each mask; points only where a ring turns.
    """
    cracks = _find_cracks(masks, origins)
    turns = np.flatnonzero(~cracks.straight)
    follower = np.searchsorted(turns, _next_turn(cracks.following, cracks.straight)[turns]).tolist()
    corners, owners = cracks.ends[turns], cracks.owners[turns].tolist()
    on_left_side = (cracks.directions[turns] == 0).tolist()
    found = [_BoundaryRings(touch_at_corners=touching) for touching in cracks.touching.tolist()]
    walked = bytearray(len(turns))
    for start in range(len(turns)):
        if walked[start]:
            continue
        ring: list[int] = []
        turn = start
        while not walked[turn]:
            walked[turn] = 1
            ring.append(turn)
            turn = follower[turn]
        ring.append(start)
        # The first pixel of a part has a turn at its left side; the one above a hole's first pixel has it below.
        rings = found[owners[start]]
        (rings.exteriors if on_left_side[start] else rings.holes).append(corners[ring])
    return found


class _Cracks(NamedTuple):
    """All cracks of all masks, in the order of their pixels.

    Attributes:
        owners: ``(n,)`` number of the mask.
        directions: ``(n,)`` 0 to 3.
        ends: ``(n, 2)`` x and y of the corner where it ends.
        following: ``(n,)`` number of the crack that follows there.
        straight: ``(n,)`` whether that one has the same direction.
        touching: ``(masks,)`` see :class:`_BoundaryRings`.
    """

    owners: np.ndarray
    directions: np.ndarray
    ends: np.ndarray
    following: np.ndarray
    straight: np.ndarray
    touching: np.ndarray


def _find_cracks(masks: Sequence[np.ndarray], origins: Sequence[tuple[int, int]]) -> _Cracks:
    # All masks lie behind each other in flat arrays, each with a frame of one pixel.
    widths = np.array([mask.shape[1] + 2 for mask in masks], dtype=np.int64)
    sizes = np.array([(mask.shape[0] + 2) * (mask.shape[1] + 2) for mask in masks], dtype=np.int64)
    ends = np.cumsum(sizes)
    inside, upper, lower = np.zeros((3, sizes.sum()), dtype=bool)
    for mask, width, size, end in zip(masks, widths.tolist(), sizes.tolist(), ends.tolist(), strict=True):
        framed, above, below = (flat[end - size : end].reshape(-1, width) for flat in (inside, upper, lower))
        framed[1:-1, 1:-1] = mask
        np.greater(framed[1:], framed[:-1], out=above[1:])
        np.greater(framed[:-1], framed[1:], out=below[:-1])
    right, left = np.flatnonzero(inside[:-1] > inside[1:]), np.flatnonzero(inside[1:] > inside[:-1]) + 1
    sides = (left, np.flatnonzero(upper), right, np.flatnonzero(lower))
    codes = np.sort(np.concatenate([4 * pixels + direction for direction, pixels in enumerate(sides)]))
    pixel, direction = np.divmod(codes, 4)
    owner = np.searchsorted(ends, pixel, side="right")
    width = widths[owner]

    ahead = pixel + _STEP_X[direction] + width * _STEP_Y[direction]
    before = (direction - 1) % 4
    beyond = ahead + _STEP_X[before] + width * _STEP_Y[before]
    turns_left = inside[beyond]
    straight = inside[ahead] & ~turns_left
    next_code = np.where(straight, 4 * ahead + direction, 4 * pixel + (direction + 1) % 4)
    next_code = np.where(turns_left, 4 * beyond + before, next_code)
    touching = np.bincount(owner[turns_left & ~inside[ahead]], minlength=len(masks)) > 0

    row, column = np.divmod(pixel - (ends - sizes)[owner], width)
    corner = np.stack((column + _END_X[direction], row + _END_Y[direction]), axis=1)
    corner += np.array(origins, dtype=np.int64).reshape(-1, 2)[owner] - 1
    return _Cracks(owner, direction, corner, np.searchsorted(codes, next_code), straight, touching)


def _next_turn(following: np.ndarray, straight: np.ndarray) -> np.ndarray:
    """Return the first crack behind each one at whose end the boundary turns, by doubling the steps."""
    while straight[following].any():
        following = np.where(straight[following], following[following], following)
    return following


def nuclei_polygons(instances: np.ndarray, table: np.ndarray) -> Iterator[tuple[int, list[Polygon]]]:
    """Yield the id and the polygons of one nucleus after the other.

    Args:
        instances: ``(H, W)`` integers, 0 = background.
        table: rows with ``id`` and ``box_*_px`` of :data:`~nucsam_monai.utils.prediction.NUCLEUS_DTYPE`.

    Yields:
        The id and what :func:`mask_polygons` returns, in coordinates of the whole image.
    """
    boxes = ("id", "box_x_min_px", "box_y_min_px", "box_x_max_px", "box_y_max_px")
    ids: list[int] = []
    masks: list[np.ndarray] = []
    origins: list[tuple[int, int]] = []
    pixels = 0
    for nucleus_id, x_min, y_min, x_max, y_max in table[list(boxes)].tolist():
        ids.append(nucleus_id)
        masks.append(instances[y_min:y_max, x_min:x_max] == nucleus_id)
        origins.append((x_min, y_min))
        pixels += masks[-1].size
        if pixels >= _PIXELS_AT_ONCE:
            yield from zip(ids, _polygons_of(masks, origins), strict=True)
            ids, masks, origins, pixels = [], [], [], 0
    yield from zip(ids, _polygons_of(masks, origins), strict=True)


def mask_polygons(mask: np.ndarray, *, x_offset_px: int = 0, y_offset_px: int = 0) -> list[Polygon]:
    """Trace a mask along its pixel corners, so that the area of the polygons is its number of pixels.

    The pixel in column x and row y covers the square from (x, y) to (x + 1, y + 1), as in QuPath. Parts that
    touch only at a corner are polygons of their own; thus every ring is simple and the result is valid by
    OGC's rules. Exteriors run counter-clockwise by the sign of their area (RFC 7946), holes clockwise.

    Args:
        mask: ``(h, w)`` uint8, 0 or 1, or bool.
        x_offset_px: x of the mask's first column.
        y_offset_px: y of the mask's first row.

    Returns:
        One polygon per 4-connected part, the largest first; empty for an empty mask.

    Example:
        >>> mask_polygons(np.ones((1, 2), dtype=np.uint8))
        [[[[0, 0], [2, 0], [2, 1], [0, 1], [0, 0]]]]
    """
    return next(_polygons_of([mask], [(x_offset_px, y_offset_px)]))


def _polygons_of(masks: Sequence[np.ndarray], origins: Sequence[tuple[int, int]]) -> Iterator[list[Polygon]]:
    return map(_assemble, _trace_boundaries(masks, origins), masks, origins)


def _assemble(rings: _BoundaryRings, mask: np.ndarray, origin: tuple[int, int]) -> list[Polygon]:
    """Return the polygons of one mask; its parts are used only if the rings are ambiguous."""
    exteriors, holes = ([ring.tolist() for ring in kind] for kind in (rings.exteriors, rings.holes))
    if rings.touch_at_corners or (holes and len(exteriors) > 1):
        count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
        if count > 2:
            separate = [parts == part for part in range(1, count)]
            polygons = [polygon for (polygon,) in _polygons_of(separate, [origin] * len(separate))]
            return sorted(polygons, key=_area, reverse=True)
    if len(exteriors) == 1:
        return [[*exteriors, *holes]]
    return sorted(([exterior] for exterior in exteriors), key=_area, reverse=True)


def _area(polygon: Polygon) -> int:
    """Return the pixels of a polygon; all sides run along an axis, and holes count against it."""
    return sum(x * (y - previous_y) for ring in polygon for (_, previous_y), (x, y) in pairwise(ring))
