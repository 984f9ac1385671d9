"""Define the networks of the methods; each takes normalised images and returns logits."""

from nucsam_monai.networks.baselines import Baseline
from nucsam_monai.networks.cfrsam.network import CFRSAM, CFRSAMOutput, PromptedCFRSAM
from nucsam_monai.networks.compilation import compile_modules
from nucsam_monai.networks.detector import Detections, Detector
from nucsam_monai.networks.detectors import DETECTORS, build_detector, default_min_score, paper_encoder
from nucsam_monai.networks.eunet3p import EUNet3P, EUNet3POutput, default_fusion
from nucsam_monai.networks.mask_rcnn import MaskRCNN
from nucsam_monai.networks.nucleus_prompts import MaskPrediction, NucleusPrompts
from nucsam_monai.networks.options import parameter_groups
from nucsam_monai.networks.pointnu_net import PointNuNet
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
from nucsam_monai.networks.sparse_inst import SparseInst
from nucsam_monai.networks.unsam import UNSAM, UNSAMOutput, trained_domains, trained_unsam

__all__ = [
    "CFRSAM",
    "DETECTORS",
    "SAC",
    "UNSAM",
    "Baseline",
    "CFRSAMOutput",
    "DenselyTaughtSegmentor",
    "Detections",
    "Detector",
    "EUNet3P",
    "EUNet3POutput",
    "EndToEnd",
    "EndToEndOutput",
    "MaskPrediction",
    "MaskRCNN",
    "NucleusPrompts",
    "PointNuNet",
    "PromptNucSeg",
    "PromptedCFRSAM",
    "Prompter",
    "PrompterOutput",
    "SACOutput",
    "Segmentor",
    "SparseInst",
    "TaughtPrediction",
    "UNSAMOutput",
    "build_detector",
    "compile_modules",
    "default_fusion",
    "default_min_score",
    "learning_parameters",
    "load_networks",
    "paper_encoder",
    "parameter_groups",
    "start_from_other_classes",
    "start_from_unsam",
    "trained_classes",
    "trained_domains",
    "trained_unsam",
    "weights_file",
]
