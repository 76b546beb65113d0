"""Memory in use, and out-of-memory errors as one error class."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from finetune_local.backend import MemoryUse
from finetune_local.system.errors import OutOfMemory
from finetune_local.system.messages import msg

# torch's CPU allocator, the C++ runtime and CUDA's libraries (cublasCreate, cudnnCreate) raise plain RuntimeErrors.
_WORDS = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory", "_ALLOC_FAILED")


def use(device: torch.device) -> MemoryUse:
    """Bytes of tensors on the GPU, or the process's resident bytes on a CPU."""
    if device.type == "cuda":
        return MemoryUse(torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))
    info = psutil.Process().memory_info()
    return MemoryUse(info.rss, max(info.rss, _peak(info)))


@contextmanager
def guard(doing: str) -> Iterator[None]:
    """Turn every out-of-memory error of torch into OutOfMemory; `doing` completes "not enough memory to ..."."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _refused(doing) from error
    except RuntimeError as error:
        if out_of_memory(error):
            raise _refused(doing) from error
        raise


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a RuntimeError is about memory."""
    return any(word in str(error) for word in _WORDS)


def release(device: torch.device) -> None:
    """Free cached blocks, so that a smaller attempt finds contiguous memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _refused(doing: str) -> OutOfMemory:
    return OutOfMemory(
        msg(
            "there is not enough memory to {what}. Close other programs, or lower --micro-batch-tokens or "
            "--max-length, turn on --gradient-checkpointing, or use a smaller model or --precision 4-bit.",
            what=doing,
        )
    )


def _peak(info: psutil._ntuples.pmem) -> int:
    if sys.platform == "win32":
        return int(info.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
