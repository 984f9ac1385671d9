"""Centroids of instances, and their pairing within a radius."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from nucsam_monai.metrics.assignment import maximum_weight_assignment
from nucsam_monai.metrics.label_maps import as_integer_map, refuse_negative_ids
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.label_runs import areas_px, centroids_xy_of, label_runs, moments, rank_ids

_RADIUS_PX_AT_40X = 12.0
_UM_PER_PX_AT_40X = 0.25
_MOST_DENSE_PAIRS = 10**8  # 800 MB of distances
_TIE_WEIGHT = 1e-9


class Centroids(NamedTuple):
    """Ids of the ``n`` instances of a label map in rising order, ``(n,)``, and centroids ``(n, 2)`` as x, y."""

    ids: NDArray[Any]
    xy: NDArray[np.float64]


class PointPairs(NamedTuple):
    """The ``k`` pairs of a true point (row) and a predicted point (column) that lie close enough."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    distances_px: NDArray[np.float64]


def matching_radius_px(magnification: float | None = None, mpp: float | None = None) -> float:
    """Return the radius within which a detected centroid counts as found: 12 px at 40x, 6 px at 20x.

    The radius is 3 micrometres on the slide.

    Args:
        magnification: objective power, for example 40 (0.25 micrometres per pixel).
        mpp: micrometres per pixel; it decides where both are given.

    Raises:
        ConfigurationError: neither is given, or one is not a positive number.

    Example:
        >>> matching_radius_px(20)
        6.0
    """
    given = {"magnification": magnification, "mpp": mpp}
    for name, value in given.items():
        if value is not None and not 0 < value < np.inf:
            raise ConfigurationError(f"{name}: expected a positive number, found {value}.")
    if mpp is not None:
        return _RADIUS_PX_AT_40X * _UM_PER_PX_AT_40X / mpp
    if magnification is None:
        raise ConfigurationError(
            "neither magnification nor mpp is given, so the matching radius is unknown. "
            "Pass one of them, or a radius in pixels (12 at 40x, 6 at 20x)."
        )
    return _RADIUS_PX_AT_40X * magnification / 40


def centroids_xy(instances: ArrayLike) -> Centroids:
    """Return the centre of mass of every instance.

    Args:
        instances: ``(H, W)`` integer ids >= 0, 0 = background.

    Returns:
        Ids in rising order and, for each, the mean column (x) and row (y) of its pixels; the centre of the
        top left pixel is (0, 0).

    Raises:
        ConfigurationError: ``instances`` is not a label map.

    Example:
        >>> centroids_xy([[0, 7, 7, 7]]).xy
        array([[2., 0.]])
    """
    labels = as_integer_map("instances", instances)
    runs = label_runs(labels)
    values = labels.ravel()[runs.starts]
    refuse_negative_ids("instances", values)
    ids, ranks = rank_ids(values)
    return Centroids(ids, centroids_xy_of(moments(runs), ranks, areas_px(runs, ranks, len(ids))))


def match_points_hungarian(true_xy: ArrayLike, pred_xy: ArrayLike, radius_px: float) -> NDArray[np.int64]:
    """Pair points by the Hungarian method on all distances, then drop the pairs beyond the radius.

    This is, to the letter, the protocol behind published detection and classification scores of PanNuke. The
    assignment pairs every point of the smaller set, so a missed nucleus and a false detection that lie far
    apart can be paired through a chain of neighbours, each of which loses its own close partner and falls out
    when the radius is applied. Compared with :func:`match_points` it therefore finds fewer pairs where both
    kinds of error occur.

    Args:
        true_xy: ``(n, 2)`` ground truth, in pixels.
        pred_xy: ``(m, 2)`` prediction, in pixels.
        radius_px: pairs at this distance still count; > 0.

    Returns:
        ``(k, 2)`` int64 pairs of an index into ``true_xy`` and one into ``pred_xy``, in rising order.

    Raises:
        ConfigurationError: the points or the radius are no such values, or there are more than
            10,000 x 10,000 pairs: the method needs all distances at once and cubic time. Use
            :func:`match_points` there.

    Source:
        Graham et al., HoVer-Net, Medical Image Analysis 2019, evaluation of nuclear classification, and its
        evaluation code.
    """
    truth, prediction = _as_points(true_xy, pred_xy, radius_px)
    if len(truth) * len(prediction) > _MOST_DENSE_PAIRS:
        raise ConfigurationError(
            f"{len(truth)} x {len(prediction)} points are too many for the Hungarian method on all distances "
            f"(limit: {_MOST_DENSE_PAIRS:.0e} pairs). Match image by image, or use match_points."
        )
    distances = cdist(truth, prediction)
    rows, columns = linear_sum_assignment(distances)
    close = distances[rows, columns] <= radius_px
    return np.stack((rows[close], columns[close]), axis=1).astype(np.int64)


def match_points(true_xy: ArrayLike, pred_xy: ArrayLike, radius_px: float) -> NDArray[np.int64]:
    """Pair points within the radius so that the sum of ``min(distance, radius)`` is as small as possible.

    The sum runs over an assignment of every point of the smaller set, as in the Hungarian method, but with all
    distances cut off at the radius. Beyond it every pair costs the same, so points that are far apart have no
    influence on each other: the problem is the maximum of ``sum(radius - distance)`` over disjoint pairs within
    the radius, and that falls apart into the connected components of the graph of such pairs. It is exact, and
    200,000 points against 200,000 take seconds.

    Without the cut-off this is :func:`match_points_hungarian`, whose pairs differ; see there.

    Args:
        true_xy: ``(n, 2)`` ground truth, in pixels.
        pred_xy: ``(m, 2)`` prediction, in pixels.
        radius_px: pairs at this distance still count; > 0.

    Returns:
        ``(k, 2)`` int64 pairs of an index into ``true_xy`` and one into ``pred_xy``, in rising order.

    Raises:
        ConfigurationError: the points or the radius are no such values.

    Source:
        Schuhmacher et al., A Consistent Metric for Performance Evaluation of Multi-Object Filters, IEEE
        Transactions on Signal Processing 2008, section III, for the distance with cut-off.

    Example:
        >>> match_points([[0, 0], [50, 50]], [[51, 50], [200, 0]], radius_px=12)
        array([[1, 0]])
    """
    pairs = pairs_within(true_xy, pred_xy, radius_px)
    # a pair on the radius itself gains nothing, yet it counts where both its points are free
    gains = radius_px * (1 + _TIE_WEIGHT) - pairs.distances_px
    chosen = maximum_weight_assignment(pairs.rows, pairs.columns, gains)
    return np.stack((pairs.rows[chosen], pairs.columns[chosen]), axis=1)


def pairs_within(true_xy: ArrayLike, pred_xy: ArrayLike, radius_px: float) -> PointPairs:
    """Return all pairs of a true and a predicted point within the radius, sorted by both indices.

    Args:
        true_xy: ``(n, 2)`` ground truth, in pixels.
        pred_xy: ``(m, 2)`` prediction, in pixels.
        radius_px: pairs at this distance still count; > 0.

    Raises:
        ConfigurationError: the points or the radius are no such values.
    """
    truth, prediction = _as_points(true_xy, pred_xy, radius_px)
    if not len(truth) or not len(prediction):
        return PointPairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    found = KDTree(truth).sparse_distance_matrix(KDTree(prediction), radius_px, output_type="ndarray")
    found = found[np.lexsort((found["j"], found["i"]))]
    return PointPairs(found["i"].astype(np.int64), found["j"].astype(np.int64), found["v"])


def _as_points(
    true_xy: ArrayLike, pred_xy: ArrayLike, radius_px: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not 0 < radius_px < np.inf:
        raise ConfigurationError(f"radius_px: expected a positive number of pixels, found {radius_px}.")
    return as_points("true_xy", true_xy), as_points("pred_xy", pred_xy)


def as_points(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return ``(n, 2)`` float64 points; an empty list is no point.

    Args:
        name: what an error calls the points.
        values: ``(n, 2)`` finite x and y.

    Raises:
        ConfigurationError: the values have another shape or are not finite.
    """
    points = np.asarray(values, dtype=np.float64)
    if points.shape == (0,):
        return points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ConfigurationError(f"{name}: expected (n, 2) points as x and y, found shape {points.shape}.")
    if not np.isfinite(points).all():
        raise ConfigurationError(
            f"{name}: {np.count_nonzero(~np.isfinite(points).all(axis=1))} of {len(points)} points are not "
            "finite. Leave instances without pixels out instead of giving them a centroid."
        )
    return points
