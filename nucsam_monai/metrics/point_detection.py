"""How well a point detector finds and classifies nuclei, as a MONAI metric."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_numpy
from numpy.typing import NDArray

from nucsam_monai.metrics.cumulative import LabelMapMetric
from nucsam_monai.metrics.detection import GreedyDetection
from nucsam_monai.metrics.detection_score import detection_result
from nucsam_monai.metrics.means import nan_mean
from nucsam_monai.utils.errors import ConfigurationError


class PointDetectionMetric(LabelMapMetric):
    """Precision, recall and F1 of all points and the mean F1 of the classes, counted over the whole dataset.

    The protocol is :class:`~nucsam_monai.metrics.GreedyDetection`. Called with lists that hold for each image
    ``y_pred`` ``(n, 4)`` of x, y, class id and score, and ``y`` ``(G, 3)`` of x, y and class id.

    Args:
        class_count: number of classes.
        radius_px: distance up to which a point counts as found.

    Example:
        >>> metric = PointDetectionMetric(1, radius_px=6)
        >>> _ = metric(y_pred=[torch.tensor([[5.0, 5, 0, 0.9]])], y=[torch.tensor([[4.0, 5, 0]])])
        >>> metric.aggregate()["f1"]
        1.0
    """

    names = ("precision", "recall", "f1", "class_f1")

    def __init__(self, class_count: int, radius_px: float) -> None:
        super().__init__()
        self.protocol = GreedyDetection(class_count, radius_px)
        subjects = ["all", *map(str, range(class_count))]
        self.columns = tuple(f"{count}_{subject}" for subject in subjects for count in ("tp", "fp", "fn"))

    def measure(self, y: NDArray[Any], y_pred: NDArray[Any]) -> Sequence[float]:
        """Return right, false and missed points of one image: of all, then of each class.

        Args:
            y: ``(G, 3)`` ground truth.
            y_pred: ``(n, 4)`` prediction.
        """
        image = GreedyDetection(self.protocol.class_count, self.protocol.radius_px)
        image.update(
            y[:, :2], y[:, 2].astype(np.int64), y_pred[:, :2], y_pred[:, 2].astype(np.int64), y_pred[:, 3]
        )
        return image.counts.astype(np.float64).ravel().tolist()

    def aggregate(self) -> dict[str, float]:
        """Return precision, recall, F1 and the mean F1 of the classes that occur; NaN where nothing was counted.

        Raises:
            ConfigurationError: no image was measured since the last reset.
        """
        counts = self.rows().sum(axis=0).reshape(-1, 3).astype(np.int64)
        found, classes = detection_result(counts, counts)
        class_f1 = nan_mean(np.array([score.f1 for score in classes]))
        return {"precision": found.precision, "recall": found.recall, "f1": found.f1, "class_f1": class_f1}

    def _compute_tensor(
        self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        if y is None or y.ndim != 3 or y.shape[-1] != 3 or y_pred.ndim != 3 or y_pred.shape[-1] != 4:
            found = None if y is None else tuple(y.shape)
            raise ConfigurationError(
                f"{type(self).__name__}: expected y_pred and y as lists of points (n, 4) and (G, 3), found "
                f"{tuple(y_pred.shape)} and {found}."
            )
        points = zip(convert_to_numpy(y), convert_to_numpy(y_pred), strict=True)
        return torch.as_tensor(np.asarray([self.measure(*pair) for pair in points], dtype=np.float64))
