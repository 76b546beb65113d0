"""Memory: how much is in use, and OutOfMemory before or when there is too little.

MLX's CPU build ends the process where it cannot allocate, and a Metal driver may, so a batch is weighed before it runs.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator

import mlx.core as mx

from finetune_local.backend import Device, MemoryUse
from finetune_local.system.errors import OutOfMemory
from finetune_local.system.messages import msg

_SIGNS = (msg("unable to allocate"), "insufficient memory", "out of memory", "outofmemory", "[malloc", "bad_alloc")


@contextlib.contextmanager
def guard(doing: str) -> Iterator[None]:
    """Raise OutOfMemory ("not enough memory to {doing}") where MLX or Python could not allocate."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error).lower() for sign in _SIGNS):
            raise
        mx.clear_cache()
        raise OutOfMemory(msg("there is not enough memory to {doing} ({error}).", doing=doing, error=error)) from error


class Meter:
    """What one session uses, and what a batch of so many tokens will need.

    A batch's need is first taken as the least it can be, then as what the largest batch so far really took, by token.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._peak = 0
        self._least, self._fixed, self._largest = 0.0, 0, 0
        self._per_token = 0.0

    def expect(self, least: float, fixed: int) -> None:
        """Before training: the least bytes per token, and those that do not grow with a batch (gradients, logits)."""
        self._least, self._fixed, self._largest, self._per_token = least, fixed, 0, least

    @contextlib.contextmanager
    def batch(self, tokens: int) -> Iterator[None]:
        """Around the computation of one batch of so many tokens, padding counted. Raises OutOfMemory beforehand."""
        need, free = int(self._per_token * tokens), _free(self._device)
        if need > free:
            raise OutOfMemory(
                msg(
                    "there is not enough memory for a batch of {tokens} tokens at once: it needs about {need} GiB, and "
                    "{free} GiB are free.",
                    tokens=tokens,
                    need=f"{need / 2**30:.1f}",
                    free=f"{free / 2**30:.1f}",
                )
            )
        self._peak = max(self._peak, int(mx.get_peak_memory()))
        mx.reset_peak_memory()
        before = int(mx.get_active_memory())
        yield
        if tokens >= self._largest:
            used = int(mx.get_peak_memory()) - before - self._fixed
            self._largest, self._per_token = tokens, max(self._least, used / tokens)

    def free(self) -> int:
        """Bytes that may still be allocated."""
        return _free(self._device)

    def use(self) -> MemoryUse:
        """The GPU's allocations; on a CPU the process's resident memory, which holds everything else too."""
        if self._device.kind != "cpu":
            return MemoryUse(int(mx.get_active_memory()), max(self._peak, int(mx.get_peak_memory())))
        import resource

        import psutil

        unit = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
        now = int(psutil.Process().memory_info().rss)
        return MemoryUse(now, max(now, int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)))


def _free(device: Device) -> int:
    """Bytes that may still be allocated: of what the GPU may use, or within the machine's and the process's limit."""
    if device.kind == "metal":
        return int(mx.get_memory_limit()) - int(mx.get_active_memory())
    import resource

    import psutil

    free = int(psutil.virtual_memory().available) + int(mx.get_cache_memory())
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        free = min(free, limit - int(psutil.Process().memory_info().vms))
    return free


def trim(limit: int) -> None:
    """Return freed buffers once they take more than `limit` bytes: batches of many lengths leave many sizes."""
    if mx.get_cache_memory() > limit:
        mx.clear_cache()
