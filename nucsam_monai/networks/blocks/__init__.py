"""Parts that networks are put together from."""

from nucsam_monai.networks.blocks.auto_prompter import AutoPrompter, GeneratorOptions
from nucsam_monai.networks.blocks.domain_query_decoder import DomainQueryDecoder
from nucsam_monai.networks.blocks.point_selection import PointPrompts, select_points
from nucsam_monai.networks.blocks.self_prompt_generator import (
    PyramidSelfPromptGenerator,
    ReleasedSelfPromptGenerator,
    binary_hint,
    thresholded_hint,
)
from nucsam_monai.networks.blocks.unet_generator import UNetGenerator

__all__ = [
    "AutoPrompter",
    "DomainQueryDecoder",
    "GeneratorOptions",
    "PointPrompts",
    "PyramidSelfPromptGenerator",
    "ReleasedSelfPromptGenerator",
    "UNetGenerator",
    "binary_hint",
    "select_points",
    "thresholded_hint",
]
