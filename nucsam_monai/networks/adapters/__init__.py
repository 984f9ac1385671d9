"""What plugs into an encoder block: the adapters of the methods."""

from nucsam_monai.networks.adapters.domain_bypass import BlockBypass, DomainBypass

__all__ = ["BlockBypass", "DomainBypass"]
