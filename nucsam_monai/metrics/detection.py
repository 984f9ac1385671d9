"""Score detection and classification by centroids, and pair points within a radius.

Two protocols are in use. Both count over a whole dataset before they divide; images without nuclei add only false
detections. They give different class scores: a nucleus that is found with the wrong class costs twice in
:class:`HovernetDetection` (as false positive and as false negative, each with weight 2) and once on either side in
:class:`GreedyDetection`. A ratio without anything to count, such as the recall of a class without ground truth,
is NaN.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from nucsam_monai.metrics.assignment import maximum_weight_assignment
from nucsam_monai.metrics.classes import as_class_ids, check_class_count
from nucsam_monai.metrics.pair import as_integer_map, refuse_negative_ids
from nucsam_monai.metrics.statistics import precision_recall_f1
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.label_runs import areas_px, centroids_xy_of, label_runs, moments, rank_ids

PointMatcher = Callable[[NDArray[np.float64], NDArray[np.float64], float], NDArray[np.int64]]

_RADIUS_PX_AT_40X = 12.0
_UM_PER_PX_AT_40X = 0.25
_MOST_DENSE_PAIRS = 10**8  # 800 MB of distances
_TIE_WEIGHT = 1e-9


class Centroids(NamedTuple):
    """Hold the ids ``(n,)`` of the instances of a label map, ascending, and their centroids ``(n, 2)`` as x, y."""

    ids: NDArray[Any]
    xy: NDArray[np.float64]


class PointPairs(NamedTuple):
    """Hold ``k`` pairs of a true point (row) and a predicted point (column) within the radius."""

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
        Ids in ascending order and, for each, the mean column (x) and row (y) of its pixels; the centre of the
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

    This is exactly the protocol behind the published detection and classification scores of PanNuke. The assignment
    pairs every point of the smaller set. If a missed nucleus and a false detection are far apart, it may therefore pair
    them through a chain of neighbours, which lose their own close partners and are dropped when the radius is applied.
    It finds fewer pairs than :func:`match_points` if both kinds of error occur.

    Args:
        true_xy: ``(n, 2)`` ground truth, in pixels.
        pred_xy: ``(m, 2)`` prediction, in pixels.
        radius_px: pairs at this distance still count; > 0.

    Returns:
        ``(k, 2)`` int64 pairs of an index into ``true_xy`` and one into ``pred_xy``, in ascending order.

    Raises:
        ConfigurationError: the points or the radius are invalid, or there are more than 10,000 x 10,000 pairs, because
            the method needs all distances at once and cubic time; use :func:`match_points` instead.

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
        ``(k, 2)`` int64 pairs of an index into ``true_xy`` and one into ``pred_xy``, in ascending order.

    Raises:
        ConfigurationError: the points or the radius are invalid.

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
        ConfigurationError: the points or the radius are invalid.
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
    _check_radius(radius_px)
    return as_points("true_xy", true_xy), as_points("pred_xy", pred_xy)


def as_points(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return ``(n, 2)`` float64 points; an empty list has no point.

    Args:
        name: how error messages name the points.
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


def _check_radius(radius_px: float) -> None:
    if not 0 < radius_px < math.inf:
        raise ConfigurationError(f"radius_px: expected a positive number of pixels, found {radius_px}.")


class DetectionScore(NamedTuple):
    """Hold precision, recall and F1, and the numbers of true positives, false positives and false negatives.

    In the class scores of :class:`~nucsam_monai.metrics.HovernetDetection`, ``fp`` and ``fn`` count confusions
    and unpaired points once each, although the ratios weigh confusions twice.
    """

    precision: float
    recall: float
    f1: float
    tp: int
    fp: int
    fn: int


class DetectionResult(NamedTuple):
    """Hold the scores of a dataset: ``detection`` regardless of class, and ``classes`` with one per class id."""

    detection: DetectionScore
    classes: tuple[DetectionScore, ...]


class DetectionAccumulator(ABC):
    """Check the input and add up integer counts; the base class of both protocols.

    Args:
        class_count: number of classes; class ids go from 0 to ``class_count - 1``.
        radius_px: distance up to which a detection counts as found, see
            :func:`nucsam_monai.metrics.matching_radius_px`.

    Raises:
        ConfigurationError: ``class_count`` is below 1, or the radius is not a positive number.
    """

    def __init__(self, class_count: int, radius_px: float) -> None:
        check_class_count(class_count)
        _check_radius(radius_px)
        self.class_count = class_count
        self.radius_px = radius_px
        self._counts = np.zeros(self._counts_shape(), np.int64)

    def update(
        self,
        true_xy: ArrayLike,
        true_classes: ArrayLike,
        pred_xy: ArrayLike,
        pred_classes: ArrayLike,
        scores: ArrayLike | None = None,
    ) -> None:
        """Add one image; see :meth:`count_image` for the arguments.

        Raises:
            ConfigurationError: shapes don't fit, a class id is out of range, or a value is not finite.
        """
        self._counts += self.count_image(true_xy, true_classes, pred_xy, pred_classes, scores)

    def count_image(
        self,
        true_xy: ArrayLike,
        true_classes: ArrayLike,
        pred_xy: ArrayLike,
        pred_classes: ArrayLike,
        scores: ArrayLike | None = None,
    ) -> NDArray[np.int64]:
        """Return the counts of one image without adding them; those of several images add up.

        Args:
            true_xy: ``(n, 2)`` ground truth, in pixels.
            true_classes: ``(n,)`` class ids from 0.
            pred_xy: ``(m, 2)`` predictions, in pixels.
            pred_classes: ``(m,)`` class ids from 0.
            scores: ``(m,)`` confidence of each prediction; without, all are equal. Only
                :class:`GreedyDetection` reads them.

        Raises:
            ConfigurationError: shapes don't fit, a class id is out of range, or a value is not finite.
        """
        truth, prediction = as_points("true_xy", true_xy), as_points("pred_xy", pred_xy)
        true_ids = as_class_ids("true_classes", true_classes, self.class_count)
        pred_ids = as_class_ids("pred_classes", pred_classes, self.class_count)
        confidence = np.zeros(len(prediction)) if scores is None else np.asarray(scores, dtype=np.float64)
        lengths = {
            "true_classes": (len(true_ids), len(truth)),
            "pred_classes": (len(pred_ids), len(prediction)),
            "scores": (len(confidence) if confidence.ndim == 1 else -1, len(prediction)),
        }
        for name, (found, expected) in lengths.items():
            if found != expected:
                raise ConfigurationError(f"{name}: expected {expected} values, one per point, found {found}.")
        if np.isnan(confidence).any():
            raise ConfigurationError("scores: found NaN, which has no place in an order. Remove such points.")
        return self._count(truth, true_ids, prediction, pred_ids, confidence)

    def merge(self, other: "DetectionAccumulator") -> None:
        """Add the images of another accumulator of the same protocol.

        Raises:
            ConfigurationError: the other counts by another protocol, other classes or another radius.
        """
        if type(other) is not type(self) or other._settings() != self._settings():
            raise ConfigurationError(
                f"cannot merge {type(other).__name__}{other._settings()} into "
                f"{type(self).__name__}{self._settings()}: the protocols differ."
            )
        self._counts += other._counts

    @property
    def counts(self) -> NDArray[np.int64]:
        """What was counted so far; the counts of several images add up, see :meth:`weights`."""
        return self._counts.copy()

    @staticmethod
    @abstractmethod
    def weights(counts: NDArray[Any]) -> NDArray[Any]:
        """Return what precision, recall and F1 are ratios of, for any number of :attr:`counts` at once.

        Args:
            counts: ``(..., *shape of counts)``.

        Returns:
            ``(..., 1 + classes, 3)``: right predictions, false ones and misses, as the protocol weighs them; first
            of all points, then of each class.
        """

    @abstractmethod
    def result(self) -> DetectionResult:
        """Return the scores of all images so far."""

    @abstractmethod
    def _counts_shape(self) -> tuple[int, ...]:
        """Return the shape of the counts of one image."""

    @abstractmethod
    def _count(
        self,
        truth: NDArray[np.float64],
        true_ids: NDArray[np.int64],
        prediction: NDArray[np.float64],
        pred_ids: NDArray[np.int64],
        scores: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Return the counts of one image."""

    def _settings(self) -> tuple[object, ...]:
        return (self.class_count, self.radius_px)


class HovernetDetection(DetectionAccumulator):
    """Score detection by HoVer-Net's protocol, used for the detection and classification tables of PanNuke.

    Points are paired whatever their class. With TP_c pairs of class c on both sides, FP_c pairs predicted as c
    of another true class, FN_c pairs of class c predicted as another, and FP_dc, FN_dc unpaired points of c::

        F1_c = 2 TP_c / (2 TP_c + 2 FP_c + 2 FN_c + FP_dc + FN_dc)
        P_c  = TP_c / (TP_c + 2 FP_c + FP_dc)        R_c = TP_c / (TP_c + 2 FN_c + FN_dc)

    Args:
        class_count: number of classes; class ids go from 0 to ``class_count - 1``.
        radius_px: pairs at this distance still count.
        match: how points are paired. Published numbers use the default; its cost grows with the cube of the
            number of nuclei, so for whole slides there is :func:`match_points`, which finds more pairs and must
            not be compared with published numbers.

    Raises:
        ConfigurationError: ``class_count`` is below 1, or the radius is not a positive number.

    Source:
        Graham et al., HoVer-Net, Medical Image Analysis 2019, evaluation of nuclear classification, and its
        evaluation code. The true negatives of the printed formula are zero in that code and left out here.

    Example:
        >>> metric = HovernetDetection(class_count=2, radius_px=12)
        >>> metric.update([[5, 5]], [0], [[6, 5], [40, 40]], [0, 1])
        >>> metric.result().detection.precision
        0.5
    """

    def __init__(
        self, class_count: int, radius_px: float, match: PointMatcher = match_points_hungarian
    ) -> None:
        super().__init__(class_count, radius_px)
        self.match = match

    def result(self) -> DetectionResult:
        """Return the scores of all images so far."""
        tp = np.diagonal(self._counts)[:-1]
        found = (tp, self._counts[:, :-1].sum(axis=0) - tp, self._counts[:-1].sum(axis=1) - tp)
        everything = (self._counts[:-1, :-1].sum(), self._counts[-1].sum(), self._counts[:, -1].sum())
        return detection_result(self.weights(self._counts), np.vstack((everything, np.column_stack(found))))

    @staticmethod
    def weights(counts: NDArray[Any]) -> NDArray[Any]:
        """Return the parts of the ratios; confusions of classes weigh twice."""
        confusion = counts[..., :-1, :-1]
        alone_pred, alone_true = counts[..., -1, :-1], counts[..., :-1, -1]
        tp = np.diagonal(confusion, axis1=-2, axis2=-1)
        false = 2 * (confusion.sum(axis=-2) - tp) + alone_pred
        missed = 2 * (confusion.sum(axis=-1) - tp) + alone_true
        classes = np.stack((tp, false, missed), axis=-1)
        everything = (confusion.sum(axis=(-2, -1)), alone_pred.sum(axis=-1), alone_true.sum(axis=-1))
        return np.concatenate((np.stack(everything, axis=-1)[..., None, :], classes), axis=-2)

    def _counts_shape(self) -> tuple[int, ...]:
        # confusion matrix, true class by predicted class, with a last row and column for "unpaired"
        return (self.class_count + 1, self.class_count + 1)

    def _count(
        self,
        truth: NDArray[np.float64],
        true_ids: NDArray[np.int64],
        prediction: NDArray[np.float64],
        pred_ids: NDArray[np.int64],
        scores: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        pairs = self.match(truth, prediction, self.radius_px)
        size, unpaired = self.class_count + 1, self.class_count
        alone_true, alone_pred = np.delete(true_ids, pairs[:, 0]), np.delete(pred_ids, pairs[:, 1])
        cells = np.concatenate(
            (
                true_ids[pairs[:, 0]] * size + pred_ids[pairs[:, 1]],
                alone_true * size + unpaired,
                unpaired * size + alone_pred,
            )
        )
        return np.bincount(cells, minlength=size * size).reshape(size, size)

    def _settings(self) -> tuple[object, ...]:
        return (*super()._settings(), getattr(self.match, "__name__", self.match))


class GreedyDetection(DetectionAccumulator):
    """Score detection by the protocol of point detectors: class by class, the most confident prediction chooses first.

    In descending score order (equal scores: in the order given) every prediction takes the nearest ground truth of
    its class within the radius that is still free. ``detection`` is the same without regard to classes.

    Args:
        class_count: number of classes; class ids go from 0 to ``class_count - 1``.
        radius_px: distance up to which a detection counts as found.

    Raises:
        ConfigurationError: ``class_count`` is below 1, or the radius is not a positive number.

    Source:
        Shui et al., Unleashing the Power of Prompt-driven Nucleus Instance Segmentation, ECCV 2024, evaluation
        of its nuclei prompter.
    """

    def result(self) -> DetectionResult:
        """Return the scores of all images so far."""
        return detection_result(self._counts, self._counts)

    @staticmethod
    def weights(counts: NDArray[Any]) -> NDArray[Any]:
        """Return the counts: here every point weighs once."""
        return counts

    def _counts_shape(self) -> tuple[int, ...]:
        return (self.class_count + 1, 3)  # tp, fp, fn; first of all points, then of each class

    def _count(
        self,
        truth: NDArray[np.float64],
        true_ids: NDArray[np.int64],
        prediction: NDArray[np.float64],
        pred_ids: NDArray[np.int64],
        scores: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        pairs = pairs_within(truth, prediction, self.radius_px)
        rank = np.empty(len(scores), np.int64)
        rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
        order = np.lexsort((pairs.distances_px, rank[pairs.columns]))
        rows, columns = pairs.rows[order], pairs.columns[order]
        same = true_ids[rows] == pred_ids[columns]
        any_class = _take_first_free(rows, columns, len(truth), len(prediction))
        own_class = _take_first_free(rows[same], columns[same], len(truth), len(prediction))
        tp = np.concatenate(([any_class.sum()], np.bincount(pred_ids[own_class], minlength=self.class_count)))
        predicted = np.concatenate(([len(pred_ids)], np.bincount(pred_ids, minlength=self.class_count)))
        present = np.concatenate(([len(true_ids)], np.bincount(true_ids, minlength=self.class_count)))
        return np.stack((tp, predicted - tp, present - tp), axis=1)


def _take_first_free(
    rows: NDArray[np.int64], columns: NDArray[np.int64], true_count: int, pred_count: int
) -> NDArray[np.bool_]:
    """Return which predictions got a ground truth when the pairs are granted in the order given."""
    taken, served = bytearray(true_count), bytearray(pred_count)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if not taken[row] and not served[column]:
            taken[row] = served[column] = 1
    return np.frombuffer(served, dtype=np.bool_)


def detection_result(weights: NDArray[np.int64], counts: NDArray[np.int64]) -> DetectionResult:
    """Return the scores of all points, then of each class.

    Args:
        weights: ``(1 + classes, 3)`` right predictions, false ones and misses as the ratios weigh them.
        counts: the same, each point counted once.
    """
    rows = zip(precision_recall_f1(weights).tolist(), counts.tolist(), strict=True)
    detection, *classes = (DetectionScore(*ratios, *numbers) for ratios, numbers in rows)
    return DetectionResult(detection, tuple(classes))
