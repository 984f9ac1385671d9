"""Parts that networks are put together from."""

from nucsam_monai.networks.blocks.auto_prompter import AutoPrompter, GeneratorOptions
from nucsam_monai.networks.blocks.boundary_evidence import BoundaryEvidence
from nucsam_monai.networks.blocks.boundary_fusion import BoundaryFusion, SpatialAttention
from nucsam_monai.networks.blocks.boundary_refinement import (
    BGMROptions,
    BoundaryRefinement,
    ImageGuides,
    PixelRefinement,
    RefinedMasks,
    build_refinement,
)
from nucsam_monai.networks.blocks.convolutions import ModulatedDeformConv
from nucsam_monai.networks.blocks.domain_query_decoder import DomainQueryDecoder
from nucsam_monai.networks.blocks.hmfm import HMFM, HMFMOptions
from nucsam_monai.networks.blocks.max_blur_pool import MaxBlurPool
from nucsam_monai.networks.blocks.point_selection import PointPrompts, select_points
from nucsam_monai.networks.blocks.sam_guidance import SAMGuidance
from nucsam_monai.networks.blocks.self_prompt_generator import (
    PyramidSelfPromptGenerator,
    ReleasedSelfPromptGenerator,
    binary_hint,
    thresholded_hint,
)
from nucsam_monai.networks.blocks.unet3plus import ORIGINAL_UNET3PLUS, UNet3Plus, UNet3PlusOptions
from nucsam_monai.networks.blocks.unet_generator import UNetGenerator
from nucsam_monai.networks.blocks.x_gated_fusion import XGatedFusionBlock, XGFBOptions

__all__ = [
    "HMFM",
    "ORIGINAL_UNET3PLUS",
    "AutoPrompter",
    "BGMROptions",
    "BoundaryEvidence",
    "BoundaryFusion",
    "BoundaryRefinement",
    "DomainQueryDecoder",
    "GeneratorOptions",
    "HMFMOptions",
    "ImageGuides",
    "MaxBlurPool",
    "ModulatedDeformConv",
    "PixelRefinement",
    "PointPrompts",
    "PyramidSelfPromptGenerator",
    "RefinedMasks",
    "ReleasedSelfPromptGenerator",
    "SAMGuidance",
    "SpatialAttention",
    "UNet3Plus",
    "UNet3PlusOptions",
    "UNetGenerator",
    "XGFBOptions",
    "XGatedFusionBlock",
    "binary_hint",
    "build_refinement",
    "select_points",
    "thresholded_hint",
]
