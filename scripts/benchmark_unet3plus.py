"""Time a training step of U-Net 3+: coarse maps enlarged and then convolved, and both in one step.

Both get the same weights and images. Memory is what a contender keeps for the backward pass.

Example:
    python scripts/benchmark_unet3plus.py --output unet3plus.json
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.io import write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the slow reference lies next to the tests
from scripts.benchmarking import origin, take_turns

if TYPE_CHECKING:
    from torch import Tensor


def main(
    filters: Sequence[int] = (32, 64, 128, 256, 512),
    image_size: int = 256,
    batch_size: int = 1,
    repeats: int = 5,
    threads: int = 1,
    device: str = "cpu",
    output: str | None = None,
) -> None:
    """Print and write the times of eU-Net3+ without guidance.

    Args:
        filters: channels of its levels.
        image_size: side of the images in pixels.
        batch_size: images of a step.
        repeats: measurements of each contender, taking turns, whose median is taken.
        threads: of PyTorch on a CPU.
        device: of the computation.
        output: JSON file for the results.
    """
    import torch

    from nucsam_monai.networks.unet3plus import UNet3Plus, UNet3PlusOptions, convolve_enlarged
    from scripts.kept_memory import kept_storages
    from tests.oracles.enlarged_convolution import enlarge_then_convolve

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = UNet3Plus(3, 2, UNet3PlusOptions(filters=tuple(filters), dropout=0.0)).to(device)
    images = torch.rand(batch_size, 3, image_size, image_size, device=device)
    contenders = {"enlarged first": enlarge_then_convolve, "ours": convolve_enlarged}
    outputs, kept = [], {}
    for name, convolve in contenders.items():
        with (
            patch("nucsam_monai.networks.unet3plus.convolve_enlarged", convolve),
            kept_storages() as storages,
        ):
            outputs.append(network(images).detach())
        kept[name] = sum(storages.values())
    steps = {name: partial(step, network, images, convolve) for name, convolve in contenders.items()}
    results: dict[str, Any] = {
        name: {**times, "kept_mib": round(kept[name] / 2**20, 1)}
        for name, times in take_turns(steps, repeats, device).items()
    }
    one, other = outputs
    results["max_relative_difference"] = ((one - other).abs().max() / one.abs().max()).item()
    print(json.dumps(results))
    if output is not None:
        setting = {
            "filters": list(filters),
            "image_size": image_size,
            "batch_size": batch_size,
            "repeats": repeats,
        }
        write_json(output, {**setting, "machine": origin(device, threads), "results": results})


def step(network: "Callable[[Tensor], Tensor]", images: "Tensor", convolve: Callable[..., Any]) -> None:
    """Take one forward and backward pass with one of the convolutions."""
    with patch("nucsam_monai.networks.unet3plus.convolve_enlarged", convolve):
        network(images).square().mean().backward()


if __name__ == "__main__":
    sys.exit(run_command(main))
