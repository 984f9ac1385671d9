"""Inference on images of any size."""

from nucsam_monai.inferers.precision import AutocastInferer, autocast
from nucsam_monai.inferers.semantic import (
    ResizeInferer,
    SemanticInferer,
    TileInferer,
    connected_components,
    prediction_from_probability,
)

__all__ = [
    "AutocastInferer",
    "ResizeInferer",
    "SemanticInferer",
    "TileInferer",
    "autocast",
    "connected_components",
    "prediction_from_probability",
]
