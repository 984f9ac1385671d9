"""Compute the losses of the papers, based on MONAI's losses where possible."""

from nucsam_monai.losses.cfrsam import CFRSAMLoss, CFRSAMTarget
from nucsam_monai.losses.common import DistanceInstanceLoss, HoVerNetBranchLoss, SummedLosses
from nucsam_monai.losses.eunet3p import EUNet3PLoss, EUNet3PMaskLoss
from nucsam_monai.losses.prompter import PrompterLoss, PrompterTarget
from nucsam_monai.losses.promptnucseg import (
    DenselyTaughtLoss,
    EndToEndLoss,
    EndToEndTarget,
    NucleusTargets,
    SegmentorLoss,
)
from nucsam_monai.losses.sac import SACLoss, SACMaskLoss
from nucsam_monai.losses.unsam import BatchFocalLoss, MaskLoss, UNSAMLoss

__all__ = [
    "BatchFocalLoss",
    "CFRSAMLoss",
    "CFRSAMTarget",
    "DenselyTaughtLoss",
    "DistanceInstanceLoss",
    "EUNet3PLoss",
    "EUNet3PMaskLoss",
    "EndToEndLoss",
    "EndToEndTarget",
    "HoVerNetBranchLoss",
    "MaskLoss",
    "NucleusTargets",
    "PrompterLoss",
    "PrompterTarget",
    "SACLoss",
    "SACMaskLoss",
    "SegmentorLoss",
    "SummedLosses",
    "UNSAMLoss",
]
