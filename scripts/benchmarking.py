"""What the benchmarks share: contenders timed in turn, where the numbers come from, and Markdown tables.

It needs nothing but the standard library, so that it also runs where only a peer's packages are installed.
"""

import datetime
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "segment-anything", "monai", "numpy", "scipy", "timm")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_tile")


def take_turns(
    contenders: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu", warm_up: bool = True
) -> dict[str, dict[str, float]]:
    """Time contenders in turn, so that a busy machine disturbs all alike.

    Args:
        contenders: what is timed, by name.
        repeats: rounds that count.
        device: ``cuda`` waits for the GPU before the clock is read.
        warm_up: whether a round that does not count comes first.

    Returns:
        By name the median and the fastest wall time and the least time of the processor, in milliseconds.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for repeat in range(-int(warm_up), repeats):
        for name, run in contenders.items():
            elapsed = seconds(run, device)
            if repeat >= 0:
                times[name].append(elapsed)
    return {
        name: {
            "median_ms": round(1e3 * statistics.median(wall for wall, _ in of_one), 3),
            "min_ms": round(1e3 * min(wall for wall, _ in of_one), 3),
            "cpu_ms": round(1e3 * min(cpu for _, cpu in of_one), 3),
        }
        for name, of_one in times.items()
    }


def seconds(run: Callable[[], Any], device: str = "cpu") -> tuple[float, float]:
    """Return the wall time and the processor's time of one call, everything on the GPU finished."""
    synchronize = sys.modules["torch"].cuda.synchronize if device.startswith("cuda") else int
    synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def origin(device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """Return what numbers come from: date, commit, machine and versions."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        **describe_machine(device, threads),
        "versions": versions(),
    }


def describe_machine(device: str, threads: int | None) -> dict[str, Any]:
    """Return the names of processor and GPU, and what of the processor matters here."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model, flags = (
        re.search(rf"^{key}\s*:\s*(.+)", cpuinfo, re.MULTILINE) for key in ("model name", "flags")
    )
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "flags": [flag for flag in FLAGS if flags and flag in flags[1].split()],
        "device": device,
        "gpu": sys.modules["torch"].cuda.get_device_name() if device.startswith("cuda") else None,
        "system": platform.platform(),
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Return the versions of Python and of the packages that decide about speed; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
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


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[object]], texts: int) -> str:
    """Return a Markdown table whose first ``texts`` columns are texts and the others numbers."""
    lines = [titles, ["---"] * texts + ["---:"] * (len(titles) - texts), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
