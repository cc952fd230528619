"""What machine a result comes from."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def describe_machine() -> str:
    """Returns the processor, the number of cores that may be used, and the operating system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {platform.system()}, Python {platform.python_version()}"


def machine_slug() -> str:
    """Returns the processor's name as a part of a file's name."""
    processor = describe_machine().split(",")[0]
    return re.sub(r"[^A-Za-z0-9]+", "-", processor).strip("-").lower()
