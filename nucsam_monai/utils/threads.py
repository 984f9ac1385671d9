"""Threads of OpenMP on a machine whose cores are shared, and the time that imports take.

A thread that waits for the others spins by default, which takes the core that one of them needs as soon as anything
else runs: two threads on two busy cores take several times as long as one. With the policy ``PASSIVE`` they sleep
instead. OpenMP reads the policy once, while PyTorch is loaded.
"""

import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLICY = "OMP_WAIT_POLICY"
COUNT = "OMP_NUM_THREADS"


def wait_passively() -> None:
    """Choose the policy ``PASSIVE`` for this process and its children, unless it is too late or the user chose one."""
    if "torch" not in sys.modules:
        os.environ.setdefault(POLICY, "PASSIVE")


def sensible_threads() -> tuple[int, str]:
    """Return how many threads a computation should have here, and why, for the log.

    All cores that the process may use; those that nobody else uses at this moment if its threads spin.
    """
    if COUNT in os.environ:
        return int(os.environ[COUNT].split(",")[0]), COUNT
    cores = usable_cores()
    if os.environ.get(POLICY, "").upper() == "PASSIVE":
        return cores, f"the usable cores, {POLICY} PASSIVE"
    free = max(1, min(cores, round(idle_cores())))
    reason = "the usable cores" if free == cores else f"{cores - free} of {cores} cores are busy"
    return free, f"{reason}; {COUNT} changes it, {POLICY}=PASSIVE lets threads share busy cores"


def usable_cores() -> int:
    """Return how many cores this process may use: those of its affinity, or of its control group if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
    except (OSError, ValueError):  # no control group, or "max": no limit
        return cores
    return max(1, min(cores, round(quota / period)))


def idle_cores(seconds: float = 0.1) -> float:
    """Return how many cores of the machine nobody uses, watched for a moment; all where the system does not tell."""
    cores = os.cpu_count() or 1
    before = _processor_ticks()
    time.sleep(seconds)
    busy, idle = (after - start for after, start in zip(_processor_ticks(), before, strict=True))
    return cores * idle / (busy + idle) if busy + idle else cores


def _processor_ticks() -> tuple[int, int]:
    """Return the ticks that all cores together were busy and idle; zeros where the system does not tell."""
    try:
        ticks = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return 0, 0
    idle = ticks[3] + ticks[4]  # idle, and waiting for a disk
    return sum(ticks) - idle, idle


@contextmanager
def collector_paused() -> Iterator[None]:
    """Import without the garbage collector, which otherwise takes a fifth of the time of importing MONAI."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
