"""Split a foreground into nuclei: connected components, watershed along necks, or a learned distance map."""

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np

from nucsam_monai.utils.errors import ConfigurationError

InstanceRule = Literal["components", "watershed", "distance"]
"""``components``: the 8-connected components; ``watershed``: these, cut where nuclei touch; ``distance``: parted by a
distance map that the network learned, see :func:`distance_instances`."""

MIN_DISTANCE_PX = 7
"""Default distance of two nuclei's centres: the radius of a small nucleus at 40x (0.25 micrometres per pixel)."""

_SMOOTHING_PX = 1.0  # a ragged outline gives the distance transform several maxima per nucleus


@dataclass(frozen=True)
class DistanceRule:
    """Configure how a foreground is split by a learned distance map. Lengths are in pixels of the map.

    Attributes:
        threshold: pixels are foreground from this probability.
        marker_threshold: foreground pixels with a larger distance value belong to a marker.
        min_marker_px: least area of a marker.
        min_area_px: least area of a nucleus; also of a component without marker.
        min_score: nuclei with a lower score are dropped, see :func:`distance_scores`.
    """

    threshold: float = 0.5
    marker_threshold: float = 0.5
    min_marker_px: int = 8
    min_area_px: int = 20
    min_score: float = 0.0


def distance_instances(
    foreground: np.ndarray, distance: np.ndarray, rule: DistanceRule = DistanceRule()
) -> np.ndarray:
    """Split a foreground into nuclei: one per marker, flooded from the deepest pixels outwards.

    Markers are the 8-connected parts of the foreground with a large distance value. A component of the foreground with
    several markers is split by a watershed on the distance map; a component with one marker or none is one nucleus.

    Args:
        foreground: ``(H, W)`` probability of nucleus.
        distance: ``(H, W)`` in [0, 1], about 1 in the middle of a nucleus and 0 at its border, as
            :func:`~nucsam_monai.transforms.nucleus_distance` gives it.
        rule: thresholds.

    Returns:
        ``(H, W)`` int32 label map with ids 1..n, each of them 8-connected.

    Example:
        >>> depth = np.array([[0.2, 0.9, 0.3, 0.8, 0.2]])
        >>> rule = DistanceRule(min_marker_px=1, min_area_px=1)
        >>> distance_instances(np.ones((1, 5)), depth, rule)
        array([[1, 1, 1, 2, 2]], dtype=int32)
    """
    return scored_distance_instances(foreground, distance, rule)[0]


def scored_distance_instances(
    foreground: np.ndarray, distance: np.ndarray, rule: DistanceRule = DistanceRule()
) -> tuple[np.ndarray, np.ndarray]:
    """Return the label map of :func:`distance_instances`, and the :func:`distance_scores` of its nuclei.

    All but the search for components is done on the pixels of the foreground alone, mostly a small part of the map.
    """
    mask = foreground >= rule.threshold
    components, boxes = _boxed_components(mask)
    deep = connected_components(mask & (distance > rule.marker_threshold))
    pixels = np.flatnonzero(mask)
    owners, markers = components.take(pixels), without_small(deep.take(pixels), rule.min_marker_px)
    probability, depth = foreground.take(pixels), distance.take(pixels)
    owner_of_marker = np.zeros(markers.max(initial=0) + 1, dtype=np.int32)
    owner_of_marker[markers] = owners
    divided = _occur_twice(owner_of_marker[1:], len(boxes))
    places = np.divmod(pixels, max(mask.shape[1], 1))
    nuclei = without_small(_flood(places, owners, boxes, markers, divided, depth), rule.min_area_px)
    scores = _scores(nuclei, probability, depth)
    if rule.min_score > 0:
        keep = scores >= rule.min_score
        nuclei, scores = _kept(nuclei, keep), scores[keep]
    label_map = np.zeros(mask.shape, dtype=np.int32)
    label_map[mask] = nuclei
    return label_map, scores


def distance_scores(instances: np.ndarray, foreground: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Compute the score of each nucleus: its mean foreground probability times the height of its marker.

    Args:
        instances: ``(H, W)`` label map with ids 1..n, as of :func:`distance_instances`.
        foreground: ``(H, W)`` probability of nucleus.
        distance: ``(H, W)`` distance map; the height of a marker is the maximum inside the nucleus, cut to [0, 1].

    Returns:
        ``(n,)`` float32 in [0, 1], ordered by id.

    Example:
        >>> distance_scores(np.array([[1, 1, 0]]), np.array([[1.0, 0.5, 0.2]]), np.array([[0.8, 0.2, 0.9]]))
        array([0.6], dtype=float32)
    """
    inside = np.flatnonzero(instances)
    return _scores(instances.take(inside), foreground.take(inside), distance.take(inside))


def _scores(nuclei: np.ndarray, foreground: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Return the scores of :func:`distance_scores` from pixels ``(k,)`` in the order of the map; 0 is no nucleus."""
    size = int(nuclei.max(initial=0)) + 1
    area = np.bincount(nuclei, minlength=size)
    mean = np.bincount(nuclei, weights=foreground, minlength=size) / np.maximum(area, 1)
    height = np.zeros(size)
    if len(nuclei):
        # The maximum of each run of pixels first: ``maximum.at`` takes long, and there are a tenth as many runs.
        runs = np.flatnonzero(np.append(True, nuclei[1:] != nuclei[:-1]))
        np.maximum.at(height, nuclei[runs], np.maximum.reduceat(distance, runs))
    return (mean * np.clip(height, 0, 1)).astype(np.float32)[1:]


def check_instance_rule(instances: str, min_distance_px: int) -> None:
    """Refuse a rule that :func:`instances_of_foreground` does not know.

    Raises:
        ConfigurationError: an unknown rule, or a distance below one pixel.
    """
    if instances not in get_args(InstanceRule):
        raise ConfigurationError(
            f"instances '{instances}': expected one of {', '.join(get_args(InstanceRule))}."
        )
    if min_distance_px < 1:
        raise ConfigurationError(f"min_distance_px {min_distance_px}: expected at least 1 pixel.")


def instances_of_foreground(
    foreground: np.ndarray, instances: InstanceRule = "components", min_distance_px: int = MIN_DISTANCE_PX
) -> np.ndarray:
    """Return the instances of a ``(H, W)`` boolean mask as an int32 label map with ids 1..n.

    Args:
        foreground: every pixel of it ends in exactly one instance.
        instances: the rule.
        min_distance_px: for ``watershed``, see :func:`watershed_instances`.

    Raises:
        ConfigurationError: an unknown rule, or a distance below one pixel.
    """
    check_instance_rule(instances, min_distance_px)
    if instances == "watershed":
        return watershed_instances(foreground, min_distance_px)
    return connected_components(foreground)


def watershed_instances(foreground: np.ndarray, min_distance_px: int = MIN_DISTANCE_PX) -> np.ndarray:
    """Cut every 8-connected component at the narrowest places between its centres.

    The centres are the maxima of the distance to the background, smoothed by a Gaussian of one pixel; from
    them a watershed floods the component. A component with one centre or none stays whole.

    Source: Vincent and Soille, "Watersheds in digital spaces", IEEE Trans. PAMI 13 (1991), on the distance
    transform, with the markers and the flooding of scikit-image.

    Args:
        foreground: ``(H, W)`` boolean mask.
        min_distance_px: centres of one component are further apart than this, along x or along y: about the
            radius of the smallest nucleus. Smaller values cut more, down to lobes of one nucleus.

    Returns:
        ``(H, W)`` int32 label map with ids 1..n, each of them 8-connected.

    Example:
        >>> y, x = np.mgrid[:13, :24]
        >>> two_discs = (y - 6) ** 2 + np.minimum((x - 6) ** 2, (x - 17) ** 2) <= 36
        >>> int(watershed_instances(two_discs, min_distance_px=5).max())
        2
    """
    if not foreground.any():
        return np.zeros(foreground.shape, dtype=np.int32)
    components, boxes = _boxed_components(foreground)
    mask = (components > 0).astype(np.uint8)
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    height = cv2.GaussianBlur(distance, (0, 0), _SMOOTHING_PX) * mask
    rows, columns = _centres(height, components, min_distance_px)
    owners = components[rows, columns]
    divided = _occur_twice(owners, len(boxes))
    markers = np.zeros_like(components)
    marking = divided[owners]
    markers[rows[marking], columns[marking]] = np.arange(1, np.count_nonzero(marking) + 1)
    places = np.nonzero(components)
    at_places = (maps[places] for maps in (components, markers, height))
    owners_of_pixels, markers_of_pixels, heights = at_places
    label_map = np.zeros_like(components)
    label_map[places] = without_small(
        _flood(places, owners_of_pixels, boxes, markers_of_pixels, divided, heights)
    )
    return label_map


def _flood(
    places: tuple[np.ndarray, ...],
    owners: np.ndarray,
    boxes: np.ndarray,
    markers: np.ndarray,
    divided: np.ndarray,
    height: np.ndarray,
) -> np.ndarray:
    """Replace the components that are ``divided`` by the parts that their markers reach, the highest pixels first.

    A watershed looks at every pixel of its map, so it gets a small one with these components alone.

    Args:
        places: rows and columns ``(k,)`` each of the foreground's pixels, in their order.
        owners: ``(k,)`` component of each.
        boxes: ``(n + 1, 4)`` of the components, of :func:`_boxed_components`.
        markers: ``(k,)`` marker of each pixel or 0.
        divided: ``(n + 1,)`` bool.
        height: ``(k,)`` of each pixel.

    Returns:
        ``(k,)`` ids, all different, but with gaps.
    """
    inside = divided[owners]
    if not inside.any():
        return owners
    from skimage.segmentation import watershed  # takes half a second, which much else need not spend

    corners, shelves, width = _packed(boxes[divided])
    shift = np.zeros((len(boxes), 2), dtype=np.int64)
    shift[divided] = corners - boxes[divided][:, 1::-1]
    row, column = (places[axis][inside] + shift[owners[inside], axis] for axis in (0, 1))
    seeds, depth = (np.zeros((shelves[-1], width), dtype=values.dtype) for values in (markers, height))
    mask = np.zeros(seeds.shape, dtype=bool)
    seeds[row, column], mask[row, column], depth[row, column] = markers[inside], True, -height[inside]
    # A pixel of a marker that has only such neighbours floods nothing, but the watershed would take its time for it.
    idle = cv2.erode((seeds > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    flooded = [  # short queues are faster than a long one
        watershed(depth[shelf], seeds[shelf], connectivity=2, mask=mask[shelf] & ~idle[shelf])
        for shelf in itertools.starmap(slice, itertools.pairwise(shelves))
    ]
    parts = owners.copy()
    parts[inside] = len(boxes) + np.where(idle, seeds, np.concatenate(flooded))[row, column]
    return parts


def _packed(boxes: np.ndarray) -> tuple[np.ndarray, list[int], int]:
    """Lay boxes on shelves without contact.

    Args:
        boxes: ``(n, 4)`` with width and height behind the corner.

    Returns:
        Row and column ``(n, 2)`` of each one's corner, the rows where the shelves begin and the last one ends, and the
        width of all.
    """
    widths, heights = boxes[:, 2] + 1, boxes[:, 3] + 1
    width = max(int(widths.max()), int(np.sqrt((widths * heights).sum())))
    corners = np.zeros((len(boxes), 2), dtype=np.int64)
    shelves, left = [0, 0], width
    for n in np.argsort(-heights, kind="stable").tolist():  # the first one of a shelf is the highest
        if left + widths[n] > width:
            shelves.append(shelves[-1] + int(heights[n]))
            left = 0
        corners[n] = shelves[-2], left
        left += int(widths[n])
    return corners, shelves[1:], width


def without_small(label_map: np.ndarray, min_area_px: int = 1) -> np.ndarray:
    """Return the nuclei of at least this area as an int32 label map with ids 1..n."""
    return _kept(label_map, np.bincount(label_map.ravel(), minlength=1)[1:] >= min_area_px)


def _kept(label_map: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return the nuclei that ``keep``, ``(n,)`` ordered by id, names, as an int32 label map with ids 1..n."""
    keep = np.append(False, keep)
    return (np.cumsum(keep) * keep).astype(np.int32)[label_map]


def _centres(height: np.ndarray, components: np.ndarray, min_distance_px: int) -> np.ndarray:
    """Return the rows and columns ``(2, n)`` of the maxima in each component that may have several.

    These are the results of scikit-image's ``peak_local_max`` with a label for each component, which searches one
    component after the other: only summits are looked at here, and alone only those next to another component's. A
    component of one height has none.
    """
    summits = (height == _dilated(height, 1)) & (components > 0)
    summits &= _occur_twice(components[summits], int(components.max(initial=0)) + 1)[components]
    rows, columns = np.nonzero(summits)
    heights, owners = height[rows, columns], components[rows, columns]
    is_peak = heights == _dilated(height, min_distance_px)[rows, columns]
    for n in np.flatnonzero(~is_peak):
        window = tuple(
            slice(max(0, at - min_distance_px), at + min_distance_px + 1) for at in (rows[n], columns[n])
        )
        is_peak[n] = height[window][components[window] == owners[n]].max() == heights[n]
    pixels = np.bincount(components.ravel())
    is_flat = np.bincount(owners[is_peak], minlength=len(pixels)) == pixels  # no pixel of it is a centre
    is_peak &= ~is_flat[owners]
    peaks = np.flatnonzero(is_peak)
    peaks = peaks[np.lexsort((peaks, -heights[peaks], owners[peaks]))]
    return _spaced(np.stack([rows[peaks], columns[peaks]]), owners[peaks], min_distance_px)


def _dilated(height: np.ndarray, radius_px: int) -> np.ndarray:
    """Return the maximum in the square of ``2 * radius_px + 1`` pixels around each pixel."""
    side = 2 * radius_px + 1
    return cv2.dilate(height, np.ones((side, side), dtype=np.uint8))


def _spaced(places: np.ndarray, owners: np.ndarray, min_distance_px: int) -> np.ndarray:
    """Drop places ``(2, n)`` nearer than the distance, along both axes, to an earlier one of their component."""
    kept: list[int] = []
    earlier: list[tuple[int, int]] = []
    for n, (row, column) in enumerate(places.T.tolist()):
        if n and owners[n] != owners[n - 1]:
            earlier = []
        if all(max(abs(row - y), abs(column - x)) >= min_distance_px for y, x in earlier):
            earlier.append((row, column))
            kept.append(n)
    return places[:, kept]


def _occur_twice(ids: np.ndarray, count: int) -> np.ndarray:
    """Return for each id below ``count`` whether ``ids`` holds it more than once; never for 0."""
    twice = np.bincount(ids, minlength=count) > 1
    twice[0] = False
    return twice


def connected_components(foreground: np.ndarray) -> np.ndarray:
    """Return the 8-connected components of a ``(H, W)`` boolean mask as an int32 label map.

    Example:
        >>> connected_components(np.array([[1, 0, 0], [0, 1, 0]], dtype=bool))
        array([[1, 0, 0],
               [0, 1, 0]], dtype=int32)
    """
    if not foreground.size:
        return np.zeros(foreground.shape, np.int32)
    return cv2.connectedComponents(np.ascontiguousarray(foreground, dtype=np.uint8), connectivity=8)[1]


def _boxed_components(foreground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`connected_components` with a box for each id, ``(n + 1, 4)``: x, y, width and height."""
    if not foreground.size:
        return np.zeros(foreground.shape, np.int32), np.zeros((1, 4), np.int32)
    mask = np.ascontiguousarray(foreground, dtype=np.uint8)
    _, components, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return components, boxes[:, : cv2.CC_STAT_AREA]
