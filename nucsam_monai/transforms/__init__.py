"""Dictionary transforms beyond MONAI's own."""

from nucsam_monai.transforms.instances import (
    ForegroundMaskd,
    NucleusPointsd,
    ProbabilityToInstancesd,
    nucleus_points,
)
from nucsam_monai.transforms.intensity import NormalizeSAMd, RandColorJitterd
from nucsam_monai.transforms.points import ExpertPointsd
from nucsam_monai.transforms.reader import NucleiImageReader

__all__ = [
    "ExpertPointsd",
    "ForegroundMaskd",
    "NormalizeSAMd",
    "NucleiImageReader",
    "NucleusPointsd",
    "ProbabilityToInstancesd",
    "RandColorJitterd",
    "nucleus_points",
]
