"""Time CFR-SAM's refinement of masks and measure its memory: all masks at once, in chunks, and only around nuclei.

All contenders get the same random weights, image and coarse masks: discs of a nucleus' size. Memory is the largest sum
of tensors that live at once, besides the inputs. The difference is that of the logits inside of the boxes.

Example:
    python scripts/benchmark_refinement.py --sam_variant vit_b --prompts 8,32 --output refinement.json
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.io import write_json

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # where the package lies that this file is part of
from scripts.benchmarking import origin, take_turns

if TYPE_CHECKING:
    from torch import Tensor


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
    import torch

    torch.set_num_threads(threads)
    counts = [prompts] if isinstance(prompts, int) else list(prompts)
    options = {
        "sam_variant": sam_variant,
        "image_size": image_size,
        "nucleus_px": nucleus_px,
        "margin_px": margin_px,
    }
    with torch.no_grad():
        results = [measure(count, **options, repeats=repeats, device=device) for count in counts]
    for row in results:
        print(json.dumps(row))
    if output is not None:
        write_json(
            output, {**options, "repeats": repeats, "machine": origin(device, threads), "results": results}
        )


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
    import torch
    from torch.nn import functional as F

    from nucsam_monai.networks.cfrsam.refinement import BoundaryRefinement, refine_in_boxes, refine_in_chunks
    from nucsam_monai.networks.sam import sam_variant as find_variant
    from scripts.kept_memory import PeakMemory

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
    for name, times in take_turns(contenders, repeats, device, warm_up=False).items():
        with PeakMemory() as memory:
            contenders[name]()
        row[name] = {**times, "peak_mib": round(memory.peak_bytes / 2**20, 2)}
    return row


def disc_logits(count: int, side: int, diameter: float) -> "Tensor":
    """Return coarse logits ``(count, 1, side, side)`` of discs at random places."""
    import torch

    centres = side * torch.rand(count, 2, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    away = torch.stack([torch.hypot(rows - y, columns - x) for y, x in centres])
    return (diameter / 2 - away).clamp(-4, 4)[:, None]


if __name__ == "__main__":
    sys.exit(run_command(main))
