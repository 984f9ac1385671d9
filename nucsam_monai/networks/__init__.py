"""Define the networks of the methods."""

from nucsam_monai.networks.baselines import Baseline
from nucsam_monai.networks.cfrsam.network import CFRSAM, CFRSAMOutput, PromptedCFRSAM
from nucsam_monai.networks.compilation import compile_modules
from nucsam_monai.networks.eunet3p import EUNet3P, EUNet3POutput, default_fusion
from nucsam_monai.networks.mask_rcnn import MaskRCNN
from nucsam_monai.networks.nucleus_prompts import MaskPrediction, NucleusPrompts
from nucsam_monai.networks.options import parameter_groups
from nucsam_monai.networks.prompter import Prompter, PrompterOutput, start_from_other_classes
from nucsam_monai.networks.promptnucseg import (
    DenselyTaughtSegmentor,
    EndToEnd,
    EndToEndOutput,
    PromptNucSeg,
    Segmentor,
    TaughtPrediction,
    learning_parameters,
    load_networks,
    start_from_unsam,
    trained_classes,
    weights_file,
)
from nucsam_monai.networks.sac import SAC, SACOutput
from nucsam_monai.networks.unsam import UNSAM, UNSAMOutput, trained_domains, trained_unsam

__all__ = [
    "CFRSAM",
    "SAC",
    "UNSAM",
    "Baseline",
    "CFRSAMOutput",
    "DenselyTaughtSegmentor",
    "EUNet3P",
    "EUNet3POutput",
    "EndToEnd",
    "EndToEndOutput",
    "MaskPrediction",
    "MaskRCNN",
    "NucleusPrompts",
    "PromptNucSeg",
    "PromptedCFRSAM",
    "Prompter",
    "PrompterOutput",
    "SACOutput",
    "Segmentor",
    "TaughtPrediction",
    "UNSAMOutput",
    "compile_modules",
    "default_fusion",
    "learning_parameters",
    "load_networks",
    "parameter_groups",
    "start_from_other_classes",
    "start_from_unsam",
    "trained_classes",
    "trained_domains",
    "trained_unsam",
    "weights_file",
]
