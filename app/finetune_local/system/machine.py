"""The machine: processors, memory, disks, NVIDIA cards. Standard library and psutil; imports no framework.

In a container, the container's limits are reported, not the host's.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Card:
    """An NVIDIA card, as its driver reports it."""

    name: str
    memory_bytes: int
    driver: str


@dataclass(frozen=True)
class Machine:
    """What this process may use. `memory_free_bytes` is available without swapping."""

    system: str
    architecture: str
    processors: int
    memory_bytes: int
    memory_free_bytes: int
    python: str
    cards: tuple[Card, ...]

    @property
    def apple_silicon(self) -> bool:
        """Whether Metal is available."""
        return self.system.startswith("macOS") and self.architecture == "arm64"


def machine() -> Machine:
    """Inspect the machine; takes 0.1 s, more if a driver is slow."""
    import psutil

    memory = psutil.virtual_memory()
    limit = memory_limit(_CGROUP)
    return Machine(
        system=_system(),
        architecture=platform.machine().lower().replace("x86_64", "x86-64").replace("amd64", "x86-64"),
        processors=processors(_CGROUP),
        memory_bytes=min(memory.total, limit),
        memory_free_bytes=min(memory.available, limit),
        python=platform.python_version(),
        cards=nvidia_cards(),
    )


@dataclass(frozen=True)
class Drive:
    """A mounted disk or partition."""

    path: str
    total_bytes: int
    free_bytes: int

    def holds(self, place: Path) -> bool:
        """Whether a folder, which need not exist yet, is on this drive and not on one mounted inside it."""
        found = [drive for drive in drives() if place.is_relative_to(drive.path)]
        return max(found, key=lambda drive: len(drive.path), default=None) == self


def drives() -> list[Drive]:
    """Writable drives, the system's first; drives that do not respond are left out."""
    import psutil

    found: dict[tuple[int, int], Drive] = {}
    for part in psutil.disk_partitions(all=False):
        if "ro" in part.opts.split(",") or part.fstype in ("squashfs", "") or not Path(part.mountpoint).is_dir():
            continue
        try:
            use = psutil.disk_usage(part.mountpoint)
        except OSError:
            continue
        found.setdefault((use.total, use.free), Drive(part.mountpoint, use.total, use.free))
    return sorted(found.values(), key=lambda drive: len(drive.path))


def processors(cgroup: Path) -> int:
    """Logical processors that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    words = _words(cgroup / "cpu.max")  # "200000 100000": microseconds of work in each span of them; or "max 100000"
    if len(words) == 2 and all(word.isdigit() and int(word) > 0 for word in words):
        return max(1, min(allowed, math.ceil(int(words[0]) / int(words[1]))))
    return allowed


def memory_limit(cgroup: Path) -> int:
    """The container's memory limit in bytes, or a number larger than any machine's memory."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        words = _words(cgroup / name)
        if words and words[0].isdigit():
            return int(words[0])
    return 1 << 62


def nvidia_cards() -> tuple[Card, ...]:
    """NVIDIA cards from nvidia-smi, which the driver installs; empty if it is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    command = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, encoding="utf-8")
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ()
    cards = []
    for line in done.stdout.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3 and fields[1].isdigit():
            cards.append(Card(fields[0], int(fields[1]) << 20, fields[2]))
    return tuple(cards)


def library_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions by package name, without importing; missing packages are left out."""
    import importlib.metadata

    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _system() -> str:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    return f"{platform.system()} {platform.release()}"


def _words(file: Path) -> list[str]:
    try:
        return file.read_text("ascii").split()
    except (OSError, UnicodeDecodeError):
        return []
