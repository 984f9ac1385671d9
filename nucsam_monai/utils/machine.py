"""Query the name of the processor and the free memory of this machine, and keep memory from one tensor to the next."""

import ctypes
import os
import platform
import re
from pathlib import Path


def processor_name() -> str:
    """Return the model of the processor, or its architecture if the system does not report it."""
    cpuinfo = Path("/proc/cpuinfo")
    model = (
        re.search(r"^model name\s*:\s*(.+)", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else None
    )
    return model[1] if model else platform.processor() or platform.machine()


def free_memory_bytes() -> int | None:
    """Return the memory that processes can still allocate, None if the system does not report it.

    It is what the system has, or what the control group (a container, a batch job) may still take if that is less.
    """
    meminfo = Path("/proc/meminfo")
    available = (
        re.search(r"^MemAvailable:\s*(\d+) kB", meminfo.read_text(), re.MULTILINE)
        if meminfo.is_file()
        else None
    )
    if available is None:
        return None
    free = int(available[1]) << 10
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no control group, or "max": no limit
        return free
    return max(0, min(free, limit - used + (int(cached[1]) if cached else 0)))


_MALLOPT_TRIM_THRESHOLD, _MALLOPT_MMAP_THRESHOLD, _MALLOPT_MMAP_MAX = -1, -3, -4  # numbers of malloc.h
_LARGEST_THRESHOLD = 32 << 20  # glibc accepts no more


def reuse_freed_memory(blocks_of_all_sizes: bool = False) -> None:
    """Have the C library keep freed memory for the next tensor, unless ``MALLOC_*`` or ``GLIBC_TUNABLES`` are set.

    By default glibc gives the memory of large tensors back to the system, which fills it with zeros page by page when
    the next operation asks for it: a fifth to a quarter of the processor's time of a network. Elsewhere than with
    glibc nothing changes.

    Args:
        blocks_of_all_sizes: keep blocks of more than 32 MiB too. That suits training, whose steps ask for the same
            sizes over and over; one large image after another could leave holes that the next one does not fit into.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # another C library, or Windows
        return
    mallopt(_MALLOPT_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_MALLOPT_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
    if blocks_of_all_sizes:
        mallopt(_MALLOPT_MMAP_MAX, 0)
