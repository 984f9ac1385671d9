"""How fast the machine's matrix products are."""

import torch
from benchmarking import seconds

from sam_benchmark.cases import Settings

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def matrix_product_peak(precision: str, settings: Settings) -> float:
    """Return the GFLOP/s of the fastest of several large square matrix products."""
    torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    side = 8192 if device.type == "cuda" else 1536
    one, other = (torch.randn(side, side, device=device).to(_TYPES[precision]) for _ in range(2))
    times = [seconds(lambda: one @ other, device.type)[0] for _ in range(8)]
    return round(2 * side**3 / min(times) / 1e9, 1)
