"""Networks of the methods."""

from nucsam_monai.networks.baselines import Baseline
from nucsam_monai.networks.compilation import compile_modules
from nucsam_monai.networks.eunet3p import EUNet3P, EUNet3POutput
from nucsam_monai.networks.sac import SAC, SACOutput
from nucsam_monai.networks.unsam import UNSAM, UNSAMOutput, trained_domains

__all__ = [
    "SAC",
    "UNSAM",
    "Baseline",
    "EUNet3P",
    "EUNet3POutput",
    "SACOutput",
    "UNSAMOutput",
    "compile_modules",
    "trained_domains",
]
