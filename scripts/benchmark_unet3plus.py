"""Time a training step of U-Net 3+: coarse maps enlarged and then convolved, and both in one step.

Both get the same weights and images. Memory is what a contender keeps for the backward pass.

Example:
    python scripts/benchmark_unet3plus.py --output unet3plus.json
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.io import write_json
from nucsam_monai.networks import unet3plus
from nucsam_monai.networks.unet3plus import UNet3Plus, UNet3PlusOptions, convolve_enlarged
from nucsam_monai.utils.machine import processor_name

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the slow reference lies next to the tests
from scripts.kept_memory import kept_storages
from tests.oracles.enlarged_convolution import enlarge_then_convolve

CONTENDERS = {"enlarged first": enlarge_then_convolve, "ours": convolve_enlarged}


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
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = UNet3Plus(3, 2, UNet3PlusOptions(filters=tuple(filters), dropout=0.0)).to(device)
    images = torch.rand(batch_size, 3, image_size, image_size, device=device)
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    outputs, kept = {}, {}
    for repeat in range(repeats + 1):
        for name, convolve in CONTENDERS.items():
            with patch.object(unet3plus, "convolve_enlarged", convolve):
                if repeat:  # the first time warms up
                    times[name].append(seconds(network, images))
                    continue
                with kept_storages() as storages:
                    outputs[name] = network(images).detach()
                kept[name] = sum(storages.values())
    one, other = outputs.values()
    results: dict[str, Any] = {
        name: {
            "median_ms": round(1e3 * statistics.median(times[name]), 1),
            "min_ms": round(1e3 * min(times[name]), 1),
            "kept_mib": round(kept[name] / 2**20, 1),
        }
        for name in CONTENDERS
    }
    results["max_relative_difference"] = ((one - other).abs().max() / one.abs().max()).item()
    print(json.dumps(results))
    if output is not None:
        name = torch.cuda.get_device_name() if device == "cuda" else processor_name()
        setting = {
            "filters": list(filters),
            "image_size": image_size,
            "batch_size": batch_size,
            "repeats": repeats,
        }
        machine = {"processor": name, "torch": torch.__version__, "threads": threads}
        write_json(output, {**setting, "machine": machine, "results": results})


def seconds(network: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Return the wall time of one forward and backward pass."""
    start = time.perf_counter()
    network(images).square().mean().backward()
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(run_command(main))
