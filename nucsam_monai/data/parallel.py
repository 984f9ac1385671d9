"""Work in several processes, for the converters; see :mod:`nucsam_monai.utils.parallel`."""

from nucsam_monai.utils.parallel import map_in_order

__all__ = ["map_in_order"]
