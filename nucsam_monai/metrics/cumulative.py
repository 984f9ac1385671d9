"""Collect one row of named values per image in MONAI metrics, and average over the images.

They are separate from the package's ``__init__`` because they load torch and MONAI.
"""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from monai.utils import convert_to_numpy
from numpy.typing import NDArray
from torch.nn import functional as F

from nucsam_monai.metrics.detection import GreedyDetection, detection_result
from nucsam_monai.metrics.foreground import (
    f1_mean_pr,
    foreground_metrics,
    smoothed_overlap,
    threshold_mean,
    weighted_scores,
)
from nucsam_monai.metrics.instance import instance_metrics, mask_ious
from nucsam_monai.metrics.pair import LabelPair
from nucsam_monai.metrics.statistics import nan_mean, nan_means
from nucsam_monai.utils.errors import ConfigurationError

logger = logging.getLogger(__name__)


class LabelMapMetric(CumulativeIterationMetric):
    """Compute one row of named values from each pair of label maps; the base class of the metrics below.

    Called with ``(y_pred, y)``, MONAI's order, as ``(B, 1, H, W)`` integer tensors or as decollated lists
    of ``(1, H, W)`` tensors, whose images may differ in size. Rows are float64 and are gathered from all
    processes before they are averaged; every process must have measured at least one image.

    Attributes:
        columns: names of the values of one row, the columns of :meth:`get_buffer`.
        names: names of the values that :meth:`aggregate` returns.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]

    @abstractmethod
    def measure(self, y: NDArray[Any], y_pred: NDArray[Any]) -> Sequence[float]:
        """Return one value per column for one image.

        Args:
            y: ``(H, W)`` ground truth.
            y_pred: ``(H, W)`` prediction.
        """

    def aggregate(self) -> dict[str, float]:
        """Return the mean of every column over the images for which it is not NaN (NaN if there are none).

        Raises:
            ConfigurationError: no image was measured since the last reset.
        """
        return dict(zip(self.columns, nan_means(self.rows(), axis=0).tolist(), strict=True))

    def rows(self) -> NDArray[np.float64]:
        """Return the ``(images, columns)`` values of all processes.

        Raises:
            ConfigurationError: no image was measured since the last reset.
        """
        buffer = self.get_buffer()
        if buffer is None:
            raise ConfigurationError(
                f"{type(self).__name__}: no image was measured since the last reset. Check that the dataset "
                "isn't empty and that the metric is called with every batch."
            )
        return convert_to_numpy(buffer)

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> Any:
        truths = 0 if y is None else len(y)
        if not truths or len(y_pred) != truths:
            raise ConfigurationError(
                f"{type(self).__name__}: expected one ground truth per prediction, found {len(y_pred)} "
                f"predictions and {truths} ground truths. Check the keys that select them."
            )
        return super()._compute_list(y_pred, y, **kwargs)

    def _compute_tensor(
        self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        if y is None or y.ndim != 4 or y.shape[1] != 1 or y.shape != y_pred.shape:
            found = None if y is None else tuple(y.shape)
            raise ConfigurationError(
                f"{type(self).__name__}: expected y_pred and y of one shape (B, 1, H, W), or lists of "
                f"(1, H, W), found {tuple(y_pred.shape)} and {found}. "
                "Pass maps of instance ids, not one-hot channels."
            )
        maps = zip(convert_to_numpy(y), convert_to_numpy(y_pred), strict=True)
        rows = [self.measure(truth[0], prediction[0]) for truth, prediction in maps]
        return torch.as_tensor(np.asarray(rows, dtype=np.float64).reshape(-1, len(self.columns)))


class InstanceSegmentationMetric(LabelMapMetric):
    """Compute AJI, AJI+, DQ, SQ and PQ per image, and their means over the images that have nuclei.

    Images without a nucleus in the ground truth have NaN rows and are left out of the means; their number
    is the aggregate ``skipped_images``, and a warning names it.

    Args:
        match_iou: IoU above which a pair counts as detected in DQ, SQ and PQ; 0 <= match_iou < 1.

    Example:
        >>> metric = InstanceSegmentationMetric()
        >>> labels = torch.tensor([[[[1, 1, 0, 2]]]])
        >>> _ = metric(y_pred=labels, y=labels)
        >>> metric.aggregate()["aji"]
        1.0
    """

    columns = ("aji", "aji_plus", "dq", "sq", "pq")
    names = (*columns, "skipped_images")

    def __init__(self, match_iou: float = 0.5) -> None:
        super().__init__()
        self.match_iou = match_iou

    def measure(self, y: NDArray[Any], y_pred: NDArray[Any]) -> Sequence[float]:
        """Return AJI, AJI+, DQ, SQ and PQ of one image, all NaN if ``y`` has no nucleus."""
        return instance_metrics(y, y_pred, self.match_iou)[: len(self.columns)]

    def aggregate(self) -> dict[str, float]:
        """Return the mean of every column over the images with nuclei, and the number of the other images.

        Raises:
            ConfigurationError: no image was measured since the last reset.
        """
        skipped = int(np.isnan(self.rows()[:, 0]).sum())
        if skipped:
            logger.warning("%d of %d images have no nuclei; AJI and PQ skip them.", skipped, len(self))
        return {**super().aggregate(), "skipped_images": float(skipped)}


class ForegroundMetric(LabelMapMetric):
    """Compute Dice, IoU, precision, recall, HD and HD95 of the foreground per image, and their means over all images.

    Empty images have a value in every column, so none is skipped. The aggregate ``f1_mean_pr`` is the F1 of
    the mean precision and the mean recall.
    """

    columns: tuple[str, ...] = ("dice", "iou", "precision", "recall", "hd", "hd95")
    names = (*columns, "f1_mean_pr")

    def measure(self, y: NDArray[Any], y_pred: NDArray[Any]) -> Sequence[float]:
        """Return Dice, IoU, precision, recall, HD and HD95 (in pixels) of one image."""
        return foreground_metrics(y, y_pred)

    def aggregate(self) -> dict[str, float]:
        """Return the mean of every column over the images, and the F1 of mean precision and mean recall.

        Raises:
            ConfigurationError: no image was measured since the last reset.
        """
        rows = self.rows()
        precision, recall = self.columns.index("precision"), self.columns.index("recall")
        return {**super().aggregate(), "f1_mean_pr": f1_mean_pr(rows[:, precision], rows[:, recall])}


class ClassForegroundMetric(ForegroundMetric):
    """Compute the values of :class:`ForegroundMetric` for every class, and their mean over the classes.

    Called with lists of ``(1 + C, H, W)`` label maps: that of all nuclei, then the mask of every class, which is -1
    everywhere where an image has no such class. Images with classes count by the mean of theirs, images without by the
    foreground of all nuclei, in the columns of :class:`ForegroundMetric`. The others are ``dice_<class>`` and so on.

    Args:
        class_names: names of the C classes.

    Example:
        >>> metric = ClassForegroundMetric(["nucleus", "cytoplasm"])
        >>> maps = torch.tensor([[[1, 2]], [[1, 0]], [[0, 1]]])
        >>> _ = metric(y_pred=[maps], y=[maps])
        >>> metric.aggregate()["dice_cytoplasm"]
        1.0
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        own = [f"{column}_{name}" for name in class_names for column in ForegroundMetric.columns]
        self.planes = 1 + len(class_names)
        self.columns = (*ForegroundMetric.columns, *own)

    def measure(self, y: NDArray[Any], y_pred: NDArray[Any]) -> Sequence[float]:
        """Return the values of one image ``(1 + C, H, W)``, then those of each class; NaN where it has none."""
        values = np.full((self.planes, len(ForegroundMetric.columns)), np.nan)
        for number in range(1, self.planes):
            if y[number].min(initial=0) >= 0:
                values[number] = foreground_metrics(y[number], y_pred[number])
        known = ~np.isnan(values[:, 0])
        values[0] = values[known].mean(axis=0) if known.any() else foreground_metrics(y[0], y_pred[0])
        return values.ravel().tolist()

    def _compute_tensor(
        self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        if y is None or y.ndim != 4 or y.shape[1] != self.planes or y.shape != y_pred.shape:
            found = None if y is None else tuple(y.shape)
            raise ConfigurationError(
                f"{type(self).__name__}: expected y_pred and y as lists of ({self.planes}, H, W), found "
                f"{tuple(y_pred.shape)} and {found}. Pass the map of all nuclei and the mask of each class."
            )
        maps = zip(convert_to_numpy(y), convert_to_numpy(y_pred), strict=True)
        return torch.as_tensor(np.asarray([self.measure(*pair) for pair in maps], dtype=np.float64))


class WeightedForegroundMetric(LabelMapMetric):
    """Compute F1 and IoU of background and foreground weighted by their areas, per image, and their means.

    The tables of eU-Net3+ hold these; see :func:`~nucsam_monai.metrics.weighted_scores`.
    They lie far above those of the foreground and are never compared with them.
    """

    columns = ("weighted_f1", "weighted_iou")
    names = columns

    def measure(self, y: NDArray[Any], y_pred: NDArray[Any]) -> Sequence[float]:
        """Return the weighted F1 and IoU of one image."""
        return weighted_scores(y, y_pred)


class FiveThresholdsMetric(LabelMapMetric):
    """Compute Dice and IoU of the foreground, averaged over five thresholds of its probability, and their means.

    SAC's tables hold these; see :func:`~nucsam_monai.metrics.threshold_mean`. Called with the probability in place of
    the predicted label map.
    """

    columns = ("dice_5_thresholds", "iou_5_thresholds")
    names = columns

    def measure(self, y: NDArray[Any], y_pred: NDArray[Any]) -> Sequence[float]:
        """Return the mean Dice and IoU of one image from its probability ``y_pred``."""
        return threshold_mean(y, y_pred)


class WorkingSizeMetric(LabelMapMetric):
    """Compute the foreground metrics at a network's working size instead of the image's size.

    UN-SAM's tables hold these: its Hausdorff distance is in pixels of images stretched to 1024 px. Called with the
    probability in place of the predicted label map.

    Args:
        size_px: side length of the square that truth and probability are stretched to; None keeps the image's size.
        smooth: constant added to numerator and denominator of Dice and IoU, see
            :func:`~nucsam_monai.metrics.smoothed_overlap`; None adds nothing.
        threshold: threshold of the probability.
    """

    def __init__(
        self, size_px: int | None = 1024, smooth: float | None = 1.0, threshold: float = 0.5
    ) -> None:
        super().__init__()
        self.size_px = size_px
        self.smooth = smooth
        self.threshold = threshold
        size = "" if size_px is None else f"_{size_px}px"
        smoothed = "" if smooth is None else f"_smooth{smooth:g}"
        names = [f"{name}{size}" for name in ("precision", "recall", "hd", "hd95")]
        self.columns = (f"dice{size}{smoothed}", f"iou{size}{smoothed}", *names)
        self.names = self.columns

    def measure(self, y: NDArray[Any], y_pred: NDArray[Any]) -> Sequence[float]:
        """Return Dice, IoU, precision, recall, HD and HD95 of one image from its probability ``y_pred``."""
        pair = LabelPair(
            self._stretch(y > 0, "nearest-exact"), self._stretch(y_pred, "bilinear") >= self.threshold
        )
        plain = foreground_metrics(pair)
        overlap = plain[:2] if self.smooth is None else smoothed_overlap(pair, smooth=self.smooth)
        return [*overlap, *plain[2:]]

    def _stretch(self, values: NDArray[Any], mode: str) -> NDArray[Any]:
        if self.size_px is None:
            return values
        size = (self.size_px, self.size_px)
        stretched = F.interpolate(
            torch.from_numpy(values.astype(np.float32))[None, None], size=size, mode=mode
        )
        return stretched[0, 0].numpy() > 0.5 if values.dtype == bool else stretched[0, 0].numpy()


class PromptedMaskMetric(LabelMapMetric):
    """Compute the mean IoU of prompted masks, each against its own nucleus, and 1 minus this value.

    Called with lists of ``(n, H, W)`` masks, one per prompt: overlapping masks cannot be distinguished in a
    label map. Images without prompts have NaN rows and are left out of the means.

    Example:
        >>> metric = PromptedMaskMetric()
        >>> masks = torch.tensor([[[1, 1, 0]], [[0, 1, 1]]])
        >>> _ = metric(y_pred=[masks], y=[masks])
        >>> metric.aggregate()
        {'mask_iou': 1.0, 'jaccard_distance': 0.0}
    """

    columns = ("mask_iou", "jaccard_distance")
    names = columns

    def measure(self, y: NDArray[Any], y_pred: NDArray[Any]) -> Sequence[float]:
        """Return the mean IoU of one image's masks ``(n, H, W)`` and one minus it; NaN if there are none."""
        mean = nan_mean(mask_ious(y, y_pred))
        return mean, 1.0 - mean

    def _compute_tensor(
        self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        if y is None or y.ndim != 4 or y.shape != y_pred.shape:
            found = None if y is None else tuple(y.shape)
            raise ConfigurationError(
                f"{type(self).__name__}: expected y_pred and y as lists of masks (n, H, W) of one shape, found "
                f"{tuple(y_pred.shape)} and {found}. Pass one mask per prompt."
            )
        masks = zip(convert_to_numpy(y), convert_to_numpy(y_pred), strict=True)
        return torch.as_tensor(np.asarray([self.measure(*pair) for pair in masks], dtype=np.float64))


class PointDetectionMetric(LabelMapMetric):
    """Compute precision, recall and F1 of points and the mean F1 of the classes, counted over the whole dataset.

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
        true_classes, pred_classes = y[:, 2].astype(np.int64), y_pred[:, 2].astype(np.int64)
        counts = self.protocol.count_image(y[:, :2], true_classes, y_pred[:, :2], pred_classes, y_pred[:, 3])
        return counts.astype(np.float64).ravel().tolist()

    def aggregate(self) -> dict[str, float]:
        """Return precision, recall, F1 and the mean F1 of the classes that occur; NaN where nothing was counted.

        Raises:
            ConfigurationError: no image was measured since the last reset.
        """
        counts = self.rows().sum(axis=0).reshape(-1, 3).astype(np.int64)
        found, classes = detection_result(counts, counts)
        class_f1 = nan_mean([score.f1 for score in classes])
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
