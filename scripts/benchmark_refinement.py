"""Time CFR-SAM's refinement of masks and measure its memory: all masks at once, in chunks, and only around nuclei.

All contenders get the same random weights, image and coarse masks: discs of a nucleus' size. Memory is the largest sum
of tensors that live at once, besides the inputs. The difference is that of the logits inside of the boxes.

Example:
    python scripts/benchmark_refinement.py --sam_variant vit_b --prompts 8,32 --output refinement.json
"""

import json
import statistics
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.io import write_json
from nucsam_monai.networks.cfrsam.refinement import BoundaryRefinement, refine_in_boxes, refine_in_chunks
from nucsam_monai.networks.sam import sam_variant as find_variant
from nucsam_monai.utils.machine import processor_name


def main(
    sam_variant: str = "vit_tiny",
    image_size: int = 256,
    prompts: int | Sequence[int] = (8, 32),
    nucleus_px: int = 24,
    margin_px: int = 16,
    repeats: int = 3,
    threads: int = 1,
    device: str = "cpu",
    output: str | None = None,
) -> None:
    """Print one line for each number of prompts.

    Args:
        sam_variant: gives the channels and the size of a coarse logit.
        image_size: side of the image in pixels.
        prompts: numbers of masks.
        nucleus_px: diameter of the nuclei.
        margin_px: how far beyond the coarse mask is refined.
        repeats: measurements of each contender, whose median is taken.
        threads: of PyTorch on a CPU.
        device: of the computation.
        output: JSON file for the results.
    """
    torch.set_num_threads(threads)
    counts = [prompts] if isinstance(prompts, int) else list(prompts)
    options = {
        "sam_variant": sam_variant,
        "image_size": image_size,
        "nucleus_px": nucleus_px,
        "margin_px": margin_px,
    }
    results = [measure(count, **options, repeats=repeats, device=device) for count in counts]
    for row in results:
        print(json.dumps(row))
    if output is not None:
        name = torch.cuda.get_device_name() if device == "cuda" else processor_name()
        machine = {"processor": name, "torch": str(torch.__version__), "threads": threads}
        write_json(output, {**options, "repeats": repeats, "machine": machine, "results": results})


@torch.no_grad()
def measure(
    count: int,
    *,
    sam_variant: str,
    image_size: int,
    nucleus_px: int,
    margin_px: int,
    repeats: int,
    device: str,
) -> dict[str, Any]:
    """Measure all contenders on ``count`` masks of one image, taking turns."""
    torch.manual_seed(0)
    variant = find_variant(sam_variant)
    channels, scale = variant.embed_channels, variant.patch // 4
    network = BoundaryRefinement(channels, scale).eval().to(device)
    grid = image_size // variant.patch
    guides = network.guides(
        torch.randn(1, channels, grid, grid, device=device),
        torch.randn(1, 3, image_size, image_size, device=device),
    )
    coarse = disc_logits(count, image_size // scale, nucleus_px / scale).to(device)
    upscaled = torch.randn(count, channels // 8, *coarse.shape[-2:], device=device)
    owners = torch.zeros(count, dtype=torch.long, device=device)
    contenders: dict[str, Callable[[], Tensor]] = {
        "at_once": lambda: network(guides, upscaled, owners).logits,
        "in_chunks": lambda: refine_in_chunks(network, guides, upscaled, owners).logits,
        "in_boxes": lambda: refine_in_boxes(network, guides, upscaled, owners, coarse, margin_px),
    }
    inside = F.interpolate((coarse > 0).float(), scale_factor=scale) > 0
    difference = (contenders["in_boxes"]() - contenders["at_once"]())[inside].abs().max().item()
    row: dict[str, Any] = {"prompts": count, "max_difference": difference}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, refine in contenders.items():
            times[name].append(seconds(refine, device))
    for name, refine in contenders.items():
        with PeakMemory() as memory:
            refine()
        row[name] = {
            "median_ms": round(1e3 * statistics.median(times[name]), 2),
            "min_ms": round(1e3 * min(times[name]), 2),
            "peak_mib": round(memory.peak_bytes / 2**20, 2),
        }
    return row


def disc_logits(count: int, side: int, diameter: float) -> Tensor:
    """Return coarse logits ``(count, 1, side, side)`` of discs at random places."""
    centres = side * torch.rand(count, 2, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    away = torch.stack([torch.hypot(rows - y, columns - x) for y, x in centres])
    return (diameter / 2 - away).clamp(-4, 4)[:, None]


def seconds(refine: Callable[[], Tensor], device: str) -> float:
    """Return the wall time of one refinement."""
    start = time.perf_counter()
    refine()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class PeakMemory(TorchDispatchMode):
    """The largest number of bytes that results of operations occupy at once inside the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._uses: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages of what it returns."""
        result = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf, given)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _count(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address in given and address not in self._uses:
            return  # a view of an input of the block
        if not self._uses[address]:
            self.live_bytes += size
        self._uses[address] += 1
        weakref.finalize(tensor, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._uses[address] -= 1
        if not self._uses[address]:
            del self._uses[address]
            self.live_bytes -= size


if __name__ == "__main__":
    sys.exit(run_command(main))
