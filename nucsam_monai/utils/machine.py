"""Query the name of the processor and the free memory of this machine, and keep what this process has of it."""

import ctypes
import platform
import re
from pathlib import Path

# Of mallopt in glibc's malloc.h, with what they are set to.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = (-1, 2**31 - 1), (-2, 2**26), (-4, 0), (-8, 1)


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


def keep_freed_memory() -> None:
    """Keep memory that is freed for what is allocated next, in this process and from now on.

    The GNU C library gives every large block back to the system, which fills it with zeros when it is asked for the
    next one: with the tensors of a network on a CPU that takes a sixth of the time. Other C libraries stay as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # not glibc
        return
    for parameter, value in (_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX):
        mallopt(parameter, value)
