"""Handlers for Ignite engines beyond those of MONAI."""

from nucsam_monai.handlers.composites import (
    EvaluationHandlers,
    TrainingHandlers,
    ValidationHandlers,
    evaluation_facts,
    run_tags,
)
from nucsam_monai.handlers.decollate_points import DecollatePoints, DecollatePrediction
from nucsam_monai.handlers.domain_schedule import DomainScheduleHandler
from nucsam_monai.handlers.early_stopping import EarlyStopping
from nucsam_monai.handlers.embedding_cache_log import EmbeddingCacheLog, embedding_cache_log
from nucsam_monai.handlers.evaluation_report import EvaluationReport
from nucsam_monai.handlers.final_validation import FinalValidation
from nucsam_monai.handlers.gradient_clipping import GradientClipping
from nucsam_monai.handlers.metrics import (
    NamedMetricsHandler,
    dice_metric,
    instance_metrics,
    mask_metric,
    point_metric,
    weighted_metrics,
)
from nucsam_monai.handlers.mlflow_run import TrackedRun
from nucsam_monai.handlers.mlflow_tracker import MLflowTracker
from nucsam_monai.handlers.network_epoch import NetworkEpoch
from nucsam_monai.handlers.nuclei_evaluation import NucleiEvaluation
from nucsam_monai.handlers.nucleus_masks import DecollateNuclei
from nucsam_monai.handlers.prediction_writer import PredictionWriter
from nucsam_monai.handlers.sam_export import SAMExport
from nucsam_monai.handlers.shared_statistics import SharedStatistics
from nucsam_monai.handlers.tracking_store import resolve_tracking_uri, tracking_uri
from nucsam_monai.handlers.training_state import TrainingState
from nucsam_monai.handlers.validation_loss import ValidationLoss
from nucsam_monai.handlers.weight_averaging import WeightAveraging
from nucsam_monai.handlers.weights_saver import BestWeightsSaver

__all__ = [
    "BestWeightsSaver",
    "DecollateNuclei",
    "DecollatePoints",
    "DecollatePrediction",
    "DomainScheduleHandler",
    "EarlyStopping",
    "EmbeddingCacheLog",
    "EvaluationHandlers",
    "EvaluationReport",
    "FinalValidation",
    "GradientClipping",
    "MLflowTracker",
    "NamedMetricsHandler",
    "NetworkEpoch",
    "NucleiEvaluation",
    "PredictionWriter",
    "SAMExport",
    "SharedStatistics",
    "TrackedRun",
    "TrainingHandlers",
    "TrainingState",
    "ValidationHandlers",
    "ValidationLoss",
    "WeightAveraging",
    "dice_metric",
    "embedding_cache_log",
    "evaluation_facts",
    "instance_metrics",
    "mask_metric",
    "point_metric",
    "resolve_tracking_uri",
    "run_tags",
    "tracking_uri",
    "weighted_metrics",
]
