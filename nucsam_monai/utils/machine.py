"""Query the name of the processor and the free memory of this machine."""

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
