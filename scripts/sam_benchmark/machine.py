"""Where the numbers come from, and how fast its matrix products are."""

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from nucsam_monai.utils.machine import processor_name
from sam_benchmark.cases import Settings
from sam_benchmark.measure import seconds

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "segment-anything", "monai", "numpy", "timm")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_tile")
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def describe_machine(device: str, threads: int) -> dict[str, Any]:
    """Return the names of processor and GPU, and the relevant features of the processor."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    present = re.search(r"^flags\s*:\s*(.+)", cpuinfo, re.MULTILINE)
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "flags": [flag for flag in FLAGS if present and flag in present[1].split()],
        "device": device,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "system": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that decide about speed; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """Return the commit of the working tree, marked where it was changed since; None outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None


def matrix_product_peak(precision: str, settings: Settings) -> float:
    """Return the GFLOP/s of the fastest of several large square matrix products."""
    torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    side = 8192 if device.type == "cuda" else 1536
    one, other = (torch.randn(side, side, device=device).to(_TYPES[precision]) for _ in range(2))
    times = [seconds(lambda: one @ other, device) for _ in range(8)]
    return round(2 * side**3 / min(times) / 1e9, 1)
