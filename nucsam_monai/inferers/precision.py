"""Run networks in mixed precision on CPU and GPU."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from nucsam_monai.utils.errors import ConfigurationError

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", "fp32", *_TYPES)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a network runs in ``precision``.

    ``auto`` takes bfloat16 if the device supports it natively (GPUs since Ampere, CPUs with AMX or AVX512-BF16), else
    float32, because emulated bfloat16 is slower than float32.

    Raises:
        ConfigurationError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ConfigurationError(f"precision '{precision}': expected one of {', '.join(PRECISIONS)}.")
    if precision == "auto":
        precision = "bf16" if _computes_bfloat16(device) else "fp32"
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_TYPES[precision])


class AutocastInferer(Inferer):
    """Run another inferer in mixed precision; loss and backward pass are not affected.

    Args:
        inferer: inferer to run, for example MONAI's ``SimpleInferer``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
    """

    def __init__(self, inferer: Inferer, precision: str = "auto") -> None:
        super().__init__()
        self.inferer = inferer
        self.precision = precision

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what the inferer returns for ``inputs`` ``(B, 3, H, W)``.

        Raises:
            ConfigurationError: ``fp16`` is used with gradients, which would vanish without loss scaling.
        """
        if self.precision == "fp16" and torch.is_grad_enabled():
            raise ConfigurationError("precision 'fp16' is for inference only: train in bf16 or fp32.")
        with autocast(self.precision, inputs.device):
            return self.inferer(inputs, network, *args, **kwargs)


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return False
