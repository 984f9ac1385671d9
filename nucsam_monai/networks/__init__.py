"""Networks of the methods."""

from nucsam_monai.networks.compilation import compile_modules
from nucsam_monai.networks.unsam import UNSAM, UNSAMOutput, trained_domains

__all__ = ["UNSAM", "UNSAMOutput", "compile_modules", "trained_domains"]
