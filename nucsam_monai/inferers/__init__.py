"""Inference on images of any size."""

from nucsam_monai.inferers.precision import AutocastInferer, autocast
from nucsam_monai.inferers.semantic import (
    ResizeInferer,
    SemanticInferer,
    TileInferer,
    prediction_from_probability,
)
from nucsam_monai.utils.components import connected_components

__all__ = [
    "AutocastInferer",
    "ResizeInferer",
    "SemanticInferer",
    "TileInferer",
    "autocast",
    "connected_components",
    "prediction_from_probability",
]
