"""Inference on images of any size."""

from nucsam_monai.inferers.automatic import AutomaticMaskInferer
from nucsam_monai.inferers.painting import paint_masks
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
    "AutomaticMaskInferer",
    "ResizeInferer",
    "SemanticInferer",
    "TileInferer",
    "autocast",
    "connected_components",
    "paint_masks",
    "prediction_from_probability",
]
