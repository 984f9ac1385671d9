"""Losses of the papers, MONAI's own ones reused."""

from nucsam_monai.losses.eunet3p import EUNet3PLoss, EUNet3PMaskLoss
from nucsam_monai.losses.hovernet import HoVerNetBranchLoss
from nucsam_monai.losses.sac import SACLoss, SACMaskLoss
from nucsam_monai.losses.unsam import BatchFocalLoss, MaskLoss, UNSAMLoss

__all__ = [
    "BatchFocalLoss",
    "EUNet3PLoss",
    "EUNet3PMaskLoss",
    "HoVerNetBranchLoss",
    "MaskLoss",
    "SACLoss",
    "SACMaskLoss",
    "UNSAMLoss",
]
