"""DT-Encoder of UN-SAM: a common and a domain-specific bypass beside every MLP (UN-SAM, section III-A)."""

from typing import Literal

from torch import Tensor, nn

from nucsam_monai.networks.adapters.bottleneck import bottleneck
from nucsam_monai.networks.sam import BlockAdapter
from nucsam_monai.utils.errors import ConfigurationError


class BlockBypass(BlockAdapter):
    """The bypass of one block as one domain sees it: ``scale * specific(common(LN(x)))`` beside the MLP."""

    def __init__(self, common: nn.Module, specific: nn.Module, scale: float) -> None:
        super().__init__()
        self.common = common
        self.specific = specific
        self.scale = scale

    def beside_mlp(self, normed: Tensor) -> Tensor:
        """Return what is added beside the MLP; ``normed`` is ``(B, h, w, d)`` after the block's LN2."""
        return self.scale * self.specific(self.common(normed))


class DomainBypass(nn.Module):
    """The bypasses of all blocks and domains; :meth:`of_domain` gives the encoder those of one domain.

    Args:
        depth: number of encoder blocks.
        width: encoder width d.
        domains: number of domains K.
        common_ratio: hidden width of the common embedding as a multiple of ``width``.
        specific_ratio: the same for each domain-specific embedding.
        scale: factor of the bypass.
        init: ``zero_last`` starts from plain SAM (last specific layer zero), ``torch_default`` does not.
        common_scope: ``shared`` keeps one common embedding that trains on through all domains;
            ``per_domain`` stores one copy per domain, which :meth:`inherit` hands on.

    Raises:
        ConfigurationError: an unknown ``init`` or ``common_scope``.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        domains: int,
        *,
        common_ratio: float = 2.0,
        specific_ratio: float = 0.25,
        scale: float = 0.5,
        init: Literal["zero_last", "torch_default"] = "zero_last",
        common_scope: Literal["shared", "per_domain"] = "shared",
    ) -> None:
        super().__init__()
        if init not in ("zero_last", "torch_default"):
            raise ConfigurationError(f"bypass init '{init}': expected 'zero_last' or 'torch_default'.")
        if common_scope not in ("shared", "per_domain"):
            raise ConfigurationError(
                f"bypass common_scope '{common_scope}': expected 'shared' or 'per_domain'."
            )
        self.scale = scale
        self.common_scope = common_scope
        copies = domains if common_scope == "per_domain" else 1
        self.common = nn.ModuleList(
            nn.ModuleList(bottleneck(width, common_ratio) for _ in range(depth)) for _ in range(copies)
        )
        specific = [[bottleneck(width, specific_ratio) for _ in range(depth)] for _ in range(domains)]
        if init == "zero_last":
            for block in (block for blocks in specific for block in blocks):
                for parameter in block[-1].parameters():
                    nn.init.zeros_(parameter)
        self.specific = nn.ModuleList(nn.ModuleList(blocks) for blocks in specific)
        for domain in range(1, copies):
            self.inherit(domain)

    def of_domain(self, domain: int) -> list[BlockBypass]:
        """Return one adapter per block for domain index ``domain``."""
        common = self.common[domain if self.common_scope == "per_domain" else 0]
        return [
            BlockBypass(shared, specific, self.scale)
            for shared, specific in zip(common.children(), self.specific[domain].children(), strict=True)
        ]

    def inherit(self, domain: int) -> None:
        """Copy the common embedding of domain ``domain - 1`` to ``domain`` (UN-SAM, Algorithm 1).

        With one shared embedding there is nothing to hand on.
        """
        if self.common_scope == "per_domain" and domain > 0:
            self.common[domain].load_state_dict(self.common[domain - 1].state_dict())
