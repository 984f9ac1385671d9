"""Dictionary transforms beyond MONAI's own."""

from nucsam_monai.transforms.augmented_copies import AugmentedCopiesd
from nucsam_monai.transforms.hovernet import HoVerNetInstancesd
from nucsam_monai.transforms.instances import (
    ForegroundMaskd,
    NucleusPointsd,
    ProbabilityToInstancesd,
    nucleus_points,
)
from nucsam_monai.transforms.intensity import NormalizeSAMd, RandColorJitterd
from nucsam_monai.transforms.reader import NucleiImageReader

__all__ = [
    "AugmentedCopiesd",
    "ForegroundMaskd",
    "HoVerNetInstancesd",
    "NormalizeSAMd",
    "NucleiImageReader",
    "NucleusPointsd",
    "ProbabilityToInstancesd",
    "RandColorJitterd",
    "nucleus_points",
]
