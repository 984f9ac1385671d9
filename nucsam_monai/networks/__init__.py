"""Networks of the methods."""

from nucsam_monai.networks.unsam import UNSAM, UNSAMOutput

__all__ = ["UNSAM", "UNSAMOutput"]
