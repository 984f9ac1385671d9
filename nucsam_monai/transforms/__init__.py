"""Dictionary transforms beyond MONAI's own."""

from nucsam_monai.transforms.instances import (
    ForegroundMaskd,
    NucleusPointsd,
    ProbabilityToInstancesd,
    nucleus_points,
)
from nucsam_monai.transforms.intensity import NormalizeSAMd, RandColorJitterd
from nucsam_monai.transforms.nucleus_prompts import (
    NucleusPromptsd,
    PointPrompt,
    prompt_with_neighbours,
    random_points,
)
from nucsam_monai.transforms.points import ExpertPointsd
from nucsam_monai.transforms.reader import NucleiImageReader

__all__ = [
    "ExpertPointsd",
    "ForegroundMaskd",
    "NormalizeSAMd",
    "NucleiImageReader",
    "NucleusPointsd",
    "NucleusPromptsd",
    "PointPrompt",
    "ProbabilityToInstancesd",
    "RandColorJitterd",
    "nucleus_points",
    "prompt_with_neighbours",
    "random_points",
]
