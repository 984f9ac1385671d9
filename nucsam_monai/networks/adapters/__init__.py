"""Whatever plugs into a block of SAM's image encoder; :class:`BlockAdapter` is the common base."""

from nucsam_monai.networks.sam.adapter import BlockAdapter

__all__ = ["BlockAdapter"]
