"""Which anchor point stands for which nucleus: the Hungarian matching of the nuclei prompter."""

import logging
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)


class AnchorMatching(NamedTuple):
    """The pairs of one image, in the order of the nuclei.

    Attributes:
        anchors: ``(G,)`` int64, the anchor of every nucleus; no anchor has two nuclei.
        cost: sum of the pairs' costs.
    """

    anchors: NDArray[np.int64]
    cost: float


def match_anchors(
    points: NDArray[np.floating],
    probabilities: NDArray[np.floating],
    nuclei: NDArray[np.floating],
    classes: NDArray[np.integer],
    distance_weight: float = 0.1,
) -> AnchorMatching:
    """Give every nucleus of one image an anchor of its own at the lowest total cost.

    The cost of a pair is ``alpha * ||p - b|| - q[c]`` (PromptNucSeg, section on the nuclei prompter; CFR-SAM,
    Eq. 1, with the sign changed). It is computed in float64, whatever the network computes in. A cost that is
    not finite becomes so large a number that as few such pairs as possible are taken.

    Args:
        points: ``(M, 2)`` predicted (x, y) in pixels.
        probabilities: ``(M, C + 1)`` predicted class probabilities q.
        nuclei: ``(G, 2)`` centroids (x, y) in pixels.
        classes: ``(G,)`` their classes c, from 0 to C - 1.
        distance_weight: alpha, per pixel.

    Raises:
        ConfigurationError: there are more nuclei than anchors, or a class that the network does not know.

    Example:
        >>> points, probabilities = np.array([[0.0, 0.0], [9.0, 0.0]]), np.full((2, 2), 0.5)
        >>> match_anchors(points, probabilities, np.array([[8.0, 0.0]]), np.array([0])).anchors
        array([1])
    """
    if len(nuclei) > len(points):
        raise ConfigurationError(
            f"{len(nuclei)} nuclei in an image of {len(points)} anchor points: expected at least one anchor for "
            "each nucleus. Take a smaller options.step, or smaller crops."
        )
    background = probabilities.shape[1] - 1
    if len(classes) and (classes.min() < 0 or classes.max() >= background):
        raise ConfigurationError(
            f"nuclei of class {classes.min()} to {classes.max()}: expected 0 to {background - 1}. Set n_classes to "
            "the dataset's number of classes."
        )
    if not len(nuclei):
        return AnchorMatching(np.zeros(0, dtype=np.int64), 0.0)
    # One row per nucleus: with its shorter side first the problem takes one shortest path for each nucleus.
    cost = distance_weight * cdist(nuclei.astype(np.float64), points.astype(np.float64))
    cost -= probabilities.astype(np.float64)[:, classes].T
    cost = _with_finite_numbers(cost)
    rows, anchors = linear_sum_assignment(cost)
    return AnchorMatching(anchors.astype(np.int64), float(cost[rows, anchors].sum()))


def _with_finite_numbers(cost: NDArray[np.float64]) -> NDArray[np.float64]:
    finite = np.isfinite(cost)
    if finite.all():
        return cost
    lowest, highest = (cost[finite].min(), cost[finite].max()) if finite.any() else (0.0, 0.0)
    # More than all finite pairs together can differ by, so that one such pair outweighs any other choice.
    large = highest + (highest - lowest + 1.0) * (len(cost) + 1)
    logger.warning(
        "%d of %d matching costs are not finite and were replaced by %g: the training diverges. "
        "Lower the learning rate or train in float32.",
        cost.size - finite.sum(),
        cost.size,
        large,
    )
    return np.where(finite, cost, large)
