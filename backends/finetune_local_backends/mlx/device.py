"""The devices MLX computes on, what must be set before it is imported, and what it cannot do (GAPS).

Imports MLX only in start().
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator

from finetune_local.backend import Device, Gap
from finetune_local.system.errors import Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.mlx import blas

_PAGED = msg("MLX has no paged optimizer states: CPU and GPU share one memory, so there is nothing to page to")

GAPS: tuple[Gap, ...] = (
    Gap("training.optimizer", "paged-adamw", "", _PAGED, "adamw"),
    Gap("training.optimizer", "paged-adamw-8bit", "", _PAGED, "adamw-8bit"),
)


def devices() -> list[Device]:
    """The devices MLX can use on this machine, best first; does not import it."""
    import psutil

    memory = int(psutil.virtual_memory().total)
    cpu = Device("cpu", "cpu", platform.processor() or platform.machine(), memory)
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return [Device("metal", "metal", _chip(), memory, fast_bf16=True), cpu]
    return [cpu]


def start(requested: str | None) -> Device:
    """Prepare the process for a device ("metal", "cpu"; None: the best) and import MLX.

    Raises Unsupported if there is no such device.
    """
    known = devices()
    chosen = known[0] if requested is None else next((d for d in known if d.id == requested), None)
    if chosen is None:
        raise Unsupported(
            msg(
                "MLX has no device '{name}' here. It has: {names}.",
                name=requested,
                names=", ".join(d.id for d in known),
            )
        )
    # Otherwise the watchdog of macOS kills long training kernels while the display is on.
    if chosen.kind == "metal":
        os.environ.setdefault("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "1")
    blas.prepare()
    with _file_limits_kept():
        import mlx.core as mx
        import mlx_lm.models.base  # noqa: F401 - the import that would change the limits

    if chosen.kind == "metal":
        if not mx.metal.is_available():
            raise Unsupported(
                msg("MLX finds no Metal device, as in a virtual machine without a GPU. Use --device cpu.")
            )
        mx.set_default_device(mx.Device(mx.gpu))
        _limit_memory()
    else:
        mx.set_default_device(mx.Device(mx.cpu))
        mx.disable_compile()  # on a CPU it calls a C++ compiler at run time, which may be missing
    return chosen


def _limit_memory() -> None:
    """Keep the GPU's memory resident, and let allocations fail before the system starts to swap heavily."""
    import mlx.core as mx

    recommended = mx.device_info().get("max_recommended_working_set_size")
    if isinstance(recommended, int) and recommended > 0:
        mx.set_memory_limit(recommended)
        mx.set_cache_limit(recommended // 8)
        with contextlib.suppress(RuntimeError, ValueError):  # macOS before 15 has no wired limit
            mx.set_wired_limit(recommended)


@contextlib.contextmanager
def _file_limits_kept() -> Iterator[None]:
    """Keep the process's limit of open files: importing mlx_lm lowers it, or fails if it is already low."""
    import resource

    original = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = original


def _chip() -> str:
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "Apple Silicon"
