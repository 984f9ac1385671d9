"""Losses of the papers, MONAI's own ones reused."""

from nucsam_monai.losses.unsam import BatchFocalLoss, MaskLoss, UNSAMLoss

__all__ = ["BatchFocalLoss", "MaskLoss", "UNSAMLoss"]
