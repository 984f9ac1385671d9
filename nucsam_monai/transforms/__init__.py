"""Dictionary transforms beyond MONAI's own."""

from nucsam_monai.transforms.augmentation import (
    AugmentedCopiesd,
    RandColorJitterd,
    RandDegraded,
    RandGridShuffled,
    RandStainJitterd,
    RandSuperpixelsd,
    RandZoomBlurd,
    RandZoomCropd,
    microscopy_augmentation,
)
from nucsam_monai.transforms.instances import (
    HoVerNetInstancesd,
    LabelMapToPredictiond,
    ProbabilityToInstancesd,
)
from nucsam_monai.transforms.prompts import (
    AugmentWithFoundd,
    ExpertPointsd,
    FoundNuclei,
    MatchedPromptsd,
    NucleusPointsd,
    NucleusPromptsd,
)
from nucsam_monai.transforms.reader import NormalizeSAMd, NucleiImageReader
from nucsam_monai.transforms.targets import (
    DenseNucleid,
    DistanceTargetd,
    ForegroundMaskd,
    NucleusCentroidsd,
    NucleusDistanced,
    NucleusSizesd,
    nucleus_distance,
)

__all__ = [
    "AugmentWithFoundd",
    "AugmentedCopiesd",
    "DenseNucleid",
    "DistanceTargetd",
    "ExpertPointsd",
    "ForegroundMaskd",
    "FoundNuclei",
    "HoVerNetInstancesd",
    "LabelMapToPredictiond",
    "MatchedPromptsd",
    "NormalizeSAMd",
    "NucleiImageReader",
    "NucleusCentroidsd",
    "NucleusDistanced",
    "NucleusPointsd",
    "NucleusPromptsd",
    "NucleusSizesd",
    "ProbabilityToInstancesd",
    "RandColorJitterd",
    "RandDegraded",
    "RandGridShuffled",
    "RandStainJitterd",
    "RandSuperpixelsd",
    "RandZoomBlurd",
    "RandZoomCropd",
    "microscopy_augmentation",
    "nucleus_distance",
]
