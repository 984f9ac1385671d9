"""Name the machine that a time was measured on."""

import platform
import re
from pathlib import Path


def processor_name() -> str:
    """Return the model of the processor, or its architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    model = (
        re.search(r"^model name\s*:\s*(.+)", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else None
    )
    return model[1] if model else platform.processor() or platform.machine()
