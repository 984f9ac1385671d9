"""Networks of the methods."""

from nucsam_monai.networks.unsam import UNSAM, UNSAMOutput, trained_domains

__all__ = ["UNSAM", "UNSAMOutput", "trained_domains"]
