"""Time MALA's dynamic convolution: neighbourhoods unfolded for each kernel size, and what the package does.

Both get the same tokens and kernels on the maps that the encoder has at tiles of 256 px (windows of 14, grids of 16)
and at 1024 px (grids of 64). Memory is what a contender keeps for the backward pass, which is what limits training.

Example:
    python scripts/benchmark_mala.py --output mala.json
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.io import write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the slow reference lies next to the tests
from scripts.benchmarking import origin, take_turns

if TYPE_CHECKING:
    from torch import Tensor

MAPS = ((4, 14), (1, 16), (25, 14), (1, 64))
"""Number of maps and their side in cells: one image's windows and its global grid at 256 and at 1024 px."""


def main(
    rank: int = 64, repeats: int = 15, threads: int = 1, device: str = "cpu", output: str | None = None
) -> None:
    """Print one line for each kind of map.

    Args:
        rank: channels inside MALA.
        repeats: measurements of each contender, whose median is taken.
        threads: of PyTorch on a CPU.
        device: of the computation.
        output: JSON file for the results.
    """
    import torch

    torch.set_num_threads(threads)
    results = [measure(count, side, rank, repeats, device) for count, side in MAPS]
    for row in results:
        print(json.dumps(row))
    if output is not None:
        write_json(
            output, {"rank": rank, "repeats": repeats, "machine": origin(device, threads), "maps": results}
        )


def measure(count: int, side: int, rank: int, repeats: int, device: str) -> dict[str, Any]:
    """Measure forward and backward pass of both contenders, taking turns."""
    import torch

    from nucsam_monai.networks.fine_tuning import KERNEL_SIDES, convolve_dynamically, nest_kernels
    from tests.oracles.dynamic_convolution import convolve as unfolded_convolution

    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(count, side, side, rank, generator=generator).to(device).requires_grad_()
    kernels = [
        torch.rand(count, side, side, k * k, generator=generator).softmax(-1).to(device).requires_grad_()
        for k in KERNEL_SIDES
    ]
    contenders: dict[str, Callable[[], Tensor]] = {
        "unfolded": lambda: torch.stack([unfolded_convolution(cells, kernel) for kernel in kernels]).sum(0),
        "ours": lambda: convolve_dynamically(cells, nest_kernels(kernels)),
    }
    row: dict[str, Any] = {"maps": count, "side": side}
    reference = contenders["unfolded"]()
    row["max_difference"] = (contenders["ours"]() - reference).abs().max().item()
    inputs = [cells, *kernels]
    steps = {
        name: partial(lambda convolve: torch.autograd.grad(convolve().sum(), inputs), convolve)
        for name, convolve in contenders.items()
    }
    for name, times in take_turns(steps, repeats, device).items():
        row[name] = {**times, "kept_mib": round(kept_bytes(contenders[name], inputs) / 2**20, 2)}
    return row


def kept_bytes(convolve: "Callable[[], Tensor]", inputs: "list[Tensor]") -> int:
    """Return the bytes that autograd keeps for the backward pass, the inputs not counted."""
    from scripts.kept_memory import kept_storages

    with kept_storages() as kept:
        result = convolve()
    total = sum(size for address, size in kept.items() if address not in {each.data_ptr() for each in inputs})
    del result
    return total


if __name__ == "__main__":
    sys.exit(run_command(main))
