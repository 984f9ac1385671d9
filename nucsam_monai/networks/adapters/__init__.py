"""What plugs into an encoder block: the adapters of the methods."""

from nucsam_monai.networks.adapters.bottleneck import BottleneckAdapters, bottleneck
from nucsam_monai.networks.adapters.domain_bypass import BlockBypass, DomainBypass
from nucsam_monai.networks.adapters.fine_tuning import FineTuning, build_adapters, freeze_for
from nucsam_monai.networks.adapters.lora import LoRA

__all__ = [
    "BlockBypass",
    "BottleneckAdapters",
    "DomainBypass",
    "FineTuning",
    "LoRA",
    "bottleneck",
    "build_adapters",
    "freeze_for",
]
