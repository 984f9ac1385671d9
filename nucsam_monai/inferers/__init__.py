"""Inference on images of any size."""

from nucsam_monai.inferers.anchor_selection import select_points, suppress_near_points
from nucsam_monai.inferers.automatic import AutomaticMaskInferer
from nucsam_monai.inferers.clicks import Clicks, ClickSegmenter, clicks_in_image
from nucsam_monai.inferers.detected_points import DetectedPoints, oracle_prompts
from nucsam_monai.inferers.painting import paint_masks
from nucsam_monai.inferers.point_finder import PointFinder
from nucsam_monai.inferers.precision import AutocastInferer, autocast
from nucsam_monai.inferers.prompted import PromptedInferer, PromptedPrediction
from nucsam_monai.inferers.prompted_segmenter import FindPoints, PromptedSegmenter, TilePrompter
from nucsam_monai.inferers.scale import ScaledInferer
from nucsam_monai.inferers.semantic import (
    ResizeInferer,
    SemanticInferer,
    TileInferer,
    prediction_from_probability,
    spatial_inferer,
)
from nucsam_monai.inferers.tile_point_finder import TilePointFinder, point_finder
from nucsam_monai.utils.instances import connected_components

__all__ = [
    "AutocastInferer",
    "AutomaticMaskInferer",
    "ClickSegmenter",
    "Clicks",
    "DetectedPoints",
    "FindPoints",
    "PointFinder",
    "PromptedInferer",
    "PromptedPrediction",
    "PromptedSegmenter",
    "ResizeInferer",
    "ScaledInferer",
    "SemanticInferer",
    "TileInferer",
    "TilePointFinder",
    "TilePrompter",
    "autocast",
    "clicks_in_image",
    "connected_components",
    "oracle_prompts",
    "paint_masks",
    "point_finder",
    "prediction_from_probability",
    "select_points",
    "spatial_inferer",
    "suppress_near_points",
]
