"""What the processor is called."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path


def cpu_name() -> str:
    """The model's name as the system gives it, such as "Apple M3" or "AMD EPYC 7763 64-Core Processor"."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    except OSError:  # not Linux
        return _asked() or platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def slug(name: str) -> str:
    """The name as a part of a file's name: lower case, words joined by "-"."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def _asked() -> str:
    """What macOS says."""
    try:
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
