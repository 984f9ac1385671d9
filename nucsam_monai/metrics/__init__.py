"""Metrics of nuclei segmentation on NumPy label maps; importing this package loads neither torch nor MONAI.

The MONAI classes that accumulate these values over a data set are in :mod:`nucsam_monai.metrics.cumulative`.
"""

from nucsam_monai.metrics.bootstrap import Bootstrap
from nucsam_monai.metrics.contingency import (
    ContingencyTable,
    TableAndCentroids,
    contingency_table,
    table_and_centroids,
)
from nucsam_monai.metrics.detection import GreedyDetection, HovernetDetection
from nucsam_monai.metrics.detection_score import DetectionResult, DetectionScore
from nucsam_monai.metrics.evaluate import evaluate, evaluation_of, evaluation_settings
from nucsam_monai.metrics.foreground import (
    ForegroundCounts,
    ForegroundMetrics,
    PrecisionRecall,
    dice,
    f1_mean_pr,
    foreground_counts,
    foreground_metrics,
    iou,
    precision_recall,
)
from nucsam_monai.metrics.foreground_variants import (
    FIVE_THRESHOLDS,
    ForegroundMeans,
    OverlapScores,
    WeightedScores,
    average_foreground,
    smoothed_overlap,
    threshold_mean,
    weighted_scores,
)
from nucsam_monai.metrics.hausdorff import hausdorff_distance
from nucsam_monai.metrics.instance import (
    InstanceMetrics,
    PanopticQuality,
    aggregated_jaccard_index,
    aggregated_jaccard_index_plus,
    instance_metrics,
    instance_metrics_from_table,
    matched_ids,
    panoptic_quality,
)
from nucsam_monai.metrics.measurement import (
    EvaluationSample,
    EvaluationSettings,
    ImageMeasurement,
    majority_classes,
    measure_image,
)
from nucsam_monai.metrics.objects import COCO_THRESHOLDS, ObjectScores, dice2, object_scores
from nucsam_monai.metrics.paired import PairedComparison, compare
from nucsam_monai.metrics.pannuke import (
    PanNukeImage,
    PanNukeScore,
    PanNukeSummary,
    TissueQuality,
    binary_panoptic_quality,
    class_panoptic_quality,
    image_mpq,
    pannuke_summary,
)
from nucsam_monai.metrics.points import (
    Centroids,
    centroids_xy,
    match_points,
    match_points_hungarian,
    matching_radius_px,
)
from nucsam_monai.metrics.pooled import PooledPanopticQuality, PooledQuality
from nucsam_monai.metrics.prompted import mask_ious
from nucsam_monai.metrics.report import ClassSummary, DatasetEvaluation, SkippedImages
from nucsam_monai.metrics.statistics import Estimate
from nucsam_monai.metrics.summary import SubsetSummary

__all__ = [
    "COCO_THRESHOLDS",
    "FIVE_THRESHOLDS",
    "Bootstrap",
    "Centroids",
    "ClassSummary",
    "ContingencyTable",
    "DatasetEvaluation",
    "DetectionResult",
    "DetectionScore",
    "Estimate",
    "EvaluationSample",
    "EvaluationSettings",
    "ForegroundCounts",
    "ForegroundMeans",
    "ForegroundMetrics",
    "GreedyDetection",
    "HovernetDetection",
    "ImageMeasurement",
    "InstanceMetrics",
    "ObjectScores",
    "OverlapScores",
    "PairedComparison",
    "PanNukeImage",
    "PanNukeScore",
    "PanNukeSummary",
    "PanopticQuality",
    "PooledPanopticQuality",
    "PooledQuality",
    "PrecisionRecall",
    "SkippedImages",
    "SubsetSummary",
    "TableAndCentroids",
    "TissueQuality",
    "WeightedScores",
    "aggregated_jaccard_index",
    "aggregated_jaccard_index_plus",
    "average_foreground",
    "binary_panoptic_quality",
    "centroids_xy",
    "class_panoptic_quality",
    "compare",
    "contingency_table",
    "dice",
    "dice2",
    "evaluate",
    "evaluation_of",
    "evaluation_settings",
    "f1_mean_pr",
    "foreground_counts",
    "foreground_metrics",
    "hausdorff_distance",
    "image_mpq",
    "instance_metrics",
    "instance_metrics_from_table",
    "iou",
    "majority_classes",
    "mask_ious",
    "match_points",
    "match_points_hungarian",
    "matched_ids",
    "matching_radius_px",
    "measure_image",
    "object_scores",
    "pannuke_summary",
    "panoptic_quality",
    "precision_recall",
    "smoothed_overlap",
    "table_and_centroids",
    "threshold_mean",
    "weighted_scores",
]
