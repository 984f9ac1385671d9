"""CFR-SAM: the network and the refinement of its masks."""

from nucsam_monai.networks.cfrsam.network import CFRSAM, CFRSAMOutput, PromptedCFRSAM

__all__ = ["CFRSAM", "CFRSAMOutput", "PromptedCFRSAM"]
