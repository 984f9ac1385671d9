"""Dictionary transforms beyond MONAI's own."""

from nucsam_monai.transforms.augmented_copies import AugmentedCopiesd
from nucsam_monai.transforms.centroids import NucleusCentroidsd, nucleus_centroids
from nucsam_monai.transforms.composites import (
    chain,
    crop,
    distance_targets,
    expert_points,
    flip_and_turn,
    flip_rotate_crop,
    foreground_of_all,
    foreground_targets,
    hovernet_targets,
    keep,
    load_nuclei,
    nucleus_sizes,
    promptnucseg_mask_augmentation,
    promptnucseg_point_augmentation,
    read_image_alone,
    resize,
    to_instances,
    zoom,
)
from nucsam_monai.transforms.dense_nuclei import DenseNucleid
from nucsam_monai.transforms.found_points import AugmentWithFoundd, FoundNuclei
from nucsam_monai.transforms.grid_shuffle import RandGridShuffled
from nucsam_monai.transforms.hovernet import HoVerNetInstancesd
from nucsam_monai.transforms.instances import (
    DistanceTargetd,
    ForegroundMaskd,
    NucleusDistanced,
    NucleusPointsd,
    ProbabilityToInstancesd,
    nucleus_distance,
    nucleus_points,
    prediction_of,
)
from nucsam_monai.transforms.intensity import NormalizeSAMd, RandColorJitterd
from nucsam_monai.transforms.matched_prompts import MatchedPromptsd, TrainingPrompts
from nucsam_monai.transforms.nucleus_prompts import (
    NucleusPromptsd,
    PointPrompt,
    prompt_with_neighbours,
    random_points,
)
from nucsam_monai.transforms.nucleus_sizes import NucleusSizesd
from nucsam_monai.transforms.points import ExpertPointsd
from nucsam_monai.transforms.reader import NucleiImageReader
from nucsam_monai.transforms.superpixels import RandSuperpixelsd
from nucsam_monai.transforms.training_crop import (
    RandDegraded,
    RandStainJitterd,
    RandZoomCropd,
    microscopy_augmentation,
)
from nucsam_monai.transforms.zoom_blur import RandZoomBlurd

__all__ = [
    "AugmentWithFoundd",
    "AugmentedCopiesd",
    "DenseNucleid",
    "DistanceTargetd",
    "ExpertPointsd",
    "ForegroundMaskd",
    "FoundNuclei",
    "HoVerNetInstancesd",
    "MatchedPromptsd",
    "NormalizeSAMd",
    "NucleiImageReader",
    "NucleusCentroidsd",
    "NucleusDistanced",
    "NucleusPointsd",
    "NucleusPromptsd",
    "NucleusSizesd",
    "PointPrompt",
    "ProbabilityToInstancesd",
    "RandColorJitterd",
    "RandDegraded",
    "RandGridShuffled",
    "RandStainJitterd",
    "RandSuperpixelsd",
    "RandZoomBlurd",
    "RandZoomCropd",
    "TrainingPrompts",
    "chain",
    "crop",
    "distance_targets",
    "expert_points",
    "flip_and_turn",
    "flip_rotate_crop",
    "foreground_of_all",
    "foreground_targets",
    "hovernet_targets",
    "keep",
    "load_nuclei",
    "microscopy_augmentation",
    "nucleus_centroids",
    "nucleus_distance",
    "nucleus_points",
    "nucleus_sizes",
    "prediction_of",
    "prompt_with_neighbours",
    "promptnucseg_mask_augmentation",
    "promptnucseg_point_augmentation",
    "random_points",
    "read_image_alone",
    "resize",
    "to_instances",
    "zoom",
]
