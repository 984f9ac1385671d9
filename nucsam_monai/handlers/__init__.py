"""Handlers for Ignite engines beyond those of MONAI."""

from nucsam_monai.handlers.mlflow_run import TrackedRun
from nucsam_monai.handlers.mlflow_tracker import MLflowTracker
from nucsam_monai.handlers.tracking_store import resolve_tracking_uri, tracking_uri

__all__ = ["MLflowTracker", "TrackedRun", "resolve_tracking_uri", "tracking_uri"]
