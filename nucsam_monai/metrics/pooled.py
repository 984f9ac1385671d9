"""Panoptic quality from counts that are pooled over a whole data set: mPQ+ of the CoNIC challenge."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nucsam_monai.metrics.classes import ClassMatches, check_class_count, match_per_class
from nucsam_monai.metrics.instance import qualities
from nucsam_monai.metrics.means import nan_mean
from nucsam_monai.utils.errors import ConfigurationError


@dataclass(frozen=True)
class PooledQuality:
    """Qualities of a data set from pooled counts; arrays are ``(classes,)``.

    Attributes:
        mpq_plus: mean of ``pq`` over the classes that occur in the ground truth; NaN if none does.
        dq: detection quality of each class; NaN where the ground truth has no nucleus of it.
        sq: segmentation quality, likewise.
        pq: panoptic quality, likewise.
        counts: the pooled counts of each class.
    """

    mpq_plus: float
    dq: NDArray[np.float64]
    sq: NDArray[np.float64]
    pq: NDArray[np.float64]
    counts: ClassMatches


class PooledPanopticQuality:
    """mPQ+: matches of each class are counted over all images before any quality is computed.

    An image without a class still adds its false positives of that class, which the mean over images (mPQ)
    leaves out. A class without a nucleus in the whole ground truth is NaN and not part of the mean; MONAI's
    ``PanopticQualityMetric``, which pools likewise, gives it 0.

    Args:
        class_count: number of classes; class ids go from 0 to ``class_count - 1``.

    Raises:
        ConfigurationError: ``class_count`` is below 1.

    Source:
        Graham et al., CoNIC Challenge, Medical Image Analysis 2024, section on the evaluation metric.

    Example:
        >>> metric = PooledPanopticQuality(class_count=2)
        >>> metric.update([[1, 1, 0, 2]], [[5, 5, 0, 0]], {1: 0, 2: 1}, {5: 0})
        >>> metric.result().counts.fn
        array([0, 1])
    """

    def __init__(self, class_count: int) -> None:
        check_class_count(class_count)
        self.class_count = class_count
        zeros = np.zeros(class_count, np.int64)
        self._counts = ClassMatches(zeros, zeros, zeros, zeros.astype(np.float64))

    def update(
        self,
        y: ArrayLike,
        y_pred: ArrayLike,
        y_classes: Mapping[int, int],
        y_pred_classes: Mapping[int, int],
    ) -> None:
        """Add one image; see :func:`nucsam_monai.metrics.class_panoptic_quality` for the arguments.

        Raises:
            ConfigurationError: the maps are not two label maps of one shape, an instance has no class, or a
                class id is out of range.
        """
        found = match_per_class(y, y_pred, y_classes, y_pred_classes, self.class_count)
        self._counts = self._counts.plus(found)

    def merge(self, other: "PooledPanopticQuality") -> None:
        """Add the images of another accumulator.

        Raises:
            ConfigurationError: the other has another number of classes.
        """
        if other.class_count != self.class_count:
            raise ConfigurationError(
                f"cannot merge counts of {other.class_count} classes into counts of {self.class_count}."
            )
        self._counts = self._counts.plus(other._counts)

    def result(self) -> PooledQuality:
        """Return the qualities of all images so far."""
        dq, sq, pq = qualities(*self._counts)
        return PooledQuality(nan_mean(pq), dq, sq, pq, self._counts)
