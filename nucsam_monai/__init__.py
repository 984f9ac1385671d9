"""Nuclei segmentation with SAM: published methods as MONAI bundles.

The package is imported by bundle configurations, so this module stays light: importing it loads neither
torch nor MONAI. ``$nucsam_monai.bundle_root('unsam')`` is how a configuration finds its own folder.
"""

from nucsam_monai.utils.paths import bundle_root

__version__ = "0.1.0"

__all__ = ["__version__", "bundle_root"]
