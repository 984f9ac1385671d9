"""Parts that networks are put together from."""

from nucsam_monai.networks.blocks.domain_query_decoder import DomainQueryDecoder
from nucsam_monai.networks.blocks.self_prompt_generator import (
    PyramidSelfPromptGenerator,
    ReleasedSelfPromptGenerator,
    binary_hint,
    thresholded_hint,
)

__all__ = [
    "DomainQueryDecoder",
    "PyramidSelfPromptGenerator",
    "ReleasedSelfPromptGenerator",
    "binary_hint",
    "thresholded_hint",
]
