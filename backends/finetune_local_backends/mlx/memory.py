"""Memory in use, and turning MLX's allocation failures into OutOfMemory."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator

import mlx.core as mx

from finetune_local.backend import Device, MemoryUse
from finetune_local.errors import OutOfMemory

_SIGNS = ("unable to allocate", "insufficient memory", "out of memory", "outofmemory", "[malloc", "bad_alloc")


@contextlib.contextmanager
def guard(doing: str) -> Iterator[None]:
    """Raise OutOfMemory ("no memory for {doing}") where MLX or Python could not allocate."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error).lower() for sign in _SIGNS):
            raise
        mx.clear_cache()
        raise OutOfMemory(f"there is not enough memory for {doing} ({error}).") from error


def in_use(device: Device) -> MemoryUse:
    """The GPU's allocations; on a CPU the process's resident memory, which holds everything else too."""
    if device.kind != "cpu":
        return MemoryUse(int(mx.get_active_memory()), int(mx.get_peak_memory()))
    import resource

    import psutil

    unit = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return MemoryUse(int(psutil.Process().memory_info().rss), int(peak))


def trim(limit: int) -> None:
    """Give freed buffers back once they have grown over `limit` bytes: batches of many lengths leave many sizes."""
    if mx.get_cache_memory() > limit:
        mx.clear_cache()
