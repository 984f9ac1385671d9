"""What plugs into an encoder block: the adapters of the methods."""

from nucsam_monai.networks.adapters.bottleneck import BottleneckAdapters, bottleneck
from nucsam_monai.networks.adapters.domain_bypass import BlockBypass, DomainBypass
from nucsam_monai.networks.adapters.fine_tuning import FineTuning, build_adapters, freeze_for
from nucsam_monai.networks.adapters.lora import LoRA
from nucsam_monai.networks.adapters.mala import MALA, BlockMALA, MALAKernel

__all__ = [
    "MALA",
    "BlockBypass",
    "BlockMALA",
    "BottleneckAdapters",
    "DomainBypass",
    "FineTuning",
    "LoRA",
    "MALAKernel",
    "bottleneck",
    "build_adapters",
    "freeze_for",
]
