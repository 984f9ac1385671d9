"""Segment images of any size: semantic, prompted, by detection, and with SAM's automatic mask generator."""

from nucsam_monai.inferers.automatic import AutomaticMaskInferer
from nucsam_monai.inferers.clicks import Clicks, ClickSegmenter, clicks_in_image
from nucsam_monai.inferers.detections import DetectionInferer
from nucsam_monai.inferers.points import (
    DetectedPoints,
    FindPoints,
    PointFinder,
    TilePointFinder,
    TilePrompter,
    oracle_prompts,
    point_finder,
    select_points,
)
from nucsam_monai.inferers.precision import AutocastInferer, autocast
from nucsam_monai.inferers.prompted import PromptedInferer, PromptedPrediction, PromptedSegmenter
from nucsam_monai.inferers.scale import ScaledInferer, part_to_look_at
from nucsam_monai.inferers.semantic import (
    ResizeInferer,
    SemanticInferer,
    TileInferer,
    otsu_foreground,
    spatial_inferer,
)

__all__ = [
    "AutocastInferer",
    "AutomaticMaskInferer",
    "ClickSegmenter",
    "Clicks",
    "DetectedPoints",
    "DetectionInferer",
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
    "oracle_prompts",
    "otsu_foreground",
    "part_to_look_at",
    "point_finder",
    "select_points",
    "spatial_inferer",
]
