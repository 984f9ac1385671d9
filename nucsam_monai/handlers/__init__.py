"""Extend MONAI's Ignite handlers: training, evaluation, MLflow tracking and weights."""

from nucsam_monai.handlers.composites import (
    EvaluationHandlers,
    InferenceHandlers,
    TrainingHandlers,
    ValidationHandlers,
    evaluation_facts,
    evaluation_tags,
    run_tags,
)
from nucsam_monai.handlers.decollate import DecollateNuclei, DecollatePoints, DecollatePrediction
from nucsam_monai.handlers.evaluation import EvaluationReport, NucleiEvaluation, PredictionWriter
from nucsam_monai.handlers.metrics import (
    NamedMetricsHandler,
    ValidationLoss,
    dice_metric,
    five_thresholds_metrics,
    instance_metrics,
    mask_metric,
    point_metric,
    weighted_metrics,
    working_size_metrics,
)
from nucsam_monai.handlers.mlflow import MLflowTracker, TrackedRun
from nucsam_monai.handlers.tracking_store import resolve_tracking_uri, tracking_uri
from nucsam_monai.handlers.training import (
    DomainScheduleHandler,
    EarlyStopping,
    EmbeddingCacheLog,
    FinalValidation,
    GradientClipping,
    NetworkEpoch,
    embedding_cache_log,
)
from nucsam_monai.handlers.training_state import TrainingState
from nucsam_monai.handlers.weights import BestWeightsSaver, SAMExport, SharedStatistics, WeightAveraging

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
    "InferenceHandlers",
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
    "evaluation_tags",
    "five_thresholds_metrics",
    "instance_metrics",
    "mask_metric",
    "point_metric",
    "resolve_tracking_uri",
    "run_tags",
    "tracking_uri",
    "weighted_metrics",
    "working_size_metrics",
]
