"""Metrics of nuclei segmentation on NumPy label maps; importing this package loads neither torch nor MONAI.

The MONAI classes that accumulate these values over a data set are in :mod:`nucsam_monai.metrics.cumulative`.
"""

from nucsam_monai.metrics.contingency import ContingencyTable, contingency_table
from nucsam_monai.metrics.foreground import (
    ForegroundMetrics,
    PrecisionRecall,
    dice,
    f1_mean_pr,
    foreground_metrics,
    iou,
    precision_recall,
)
from nucsam_monai.metrics.hausdorff import hausdorff_distance
from nucsam_monai.metrics.instance import (
    InstanceMetrics,
    PanopticQuality,
    aggregated_jaccard_index,
    aggregated_jaccard_index_plus,
    instance_metrics,
    panoptic_quality,
)

__all__ = [
    "ContingencyTable",
    "ForegroundMetrics",
    "InstanceMetrics",
    "PanopticQuality",
    "PrecisionRecall",
    "aggregated_jaccard_index",
    "aggregated_jaccard_index_plus",
    "contingency_table",
    "dice",
    "f1_mean_pr",
    "foreground_metrics",
    "hausdorff_distance",
    "instance_metrics",
    "iou",
    "panoptic_quality",
    "precision_recall",
]
