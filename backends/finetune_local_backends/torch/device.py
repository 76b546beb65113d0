"""Which device to compute on, notes about it, and what torch cannot do there (GAPS).

Imports torch only where a card may be in use. Full training on a quantised base is refused by tuners/full.py, since it is a
combination of two settings and not the value of one.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
from functools import cache
from pathlib import Path

import psutil

from finetune_local.backend import Device, Gap
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import Message, msg

_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""CPU instructions with which bf16 products are two to four times as fast as fp32 ones; otherwise bf16 is emulated."""

OPTIMIZER = "training.optimizer"

_PAGED = msg("paging moves optimizer states between a card and the machine's memory, and here both are the same")

AFFINE = msg("bitsandbytes, which quantises for torch, has no affine 4-bit groups; only MLX has them")

GAPS: tuple[Gap, ...] = (
    Gap("model.quantisation", "affine", "", AFFINE, "nf4"),
    Gap(OPTIMIZER, "paged-adamw", "cpu", _PAGED, "adamw"),
    Gap(OPTIMIZER, "paged-adamw-8bit", "cpu", _PAGED, "adamw-8bit"),
)


@cache
def nvidia_card() -> bool:
    """Whether an NVIDIA driver or its command-line tool is installed."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def build() -> str:
    """How the installed torch was built: "cpu", "rocm" or "cuda"; "" if unknown or not installed.

    Read from torch/version.py without importing it: PyPI's wheels are CUDA builds on Linux and CPU builds on Windows, which their version
    does not show.
    """
    spec = importlib.util.find_spec("torch")
    try:
        text = Path((spec and spec.origin) or "").with_name("version.py").read_text("utf-8")
    except (OSError, ValueError):
        return ""
    built = dict(re.findall(r"(?m)^(cuda|hip)\b[^=\n]*= *(\S+)", text))
    if not built:
        return ""
    return next(
        (word for name, word in (("cuda", "cuda"), ("hip", "rocm")) if built.get(name, "None") != "None"), "cpu"
    )


def devices() -> list[Device]:
    """Every GPU that torch can use, then the CPU."""
    return [*_cards(), cpu()]


def cpu() -> Device:
    """The CPU, with the machine's whole memory."""
    return Device(
        "cpu",
        "cpu",
        _cpu_field("model name") or platform.processor() or platform.machine() or "CPU",
        psutil.virtual_memory().total,
        fast_bf16=bool(_BF16_FLAGS & set(_cpu_field("flags").split())),
    )


def pick(requested: str | None) -> Device:
    """The device with this id or kind, by default the best. Raises SpecError if there is none."""
    found = devices()
    if requested is None:
        return found[0]
    for device in found:
        if requested in (device.id, device.kind):
            return device
    raise SpecError(
        msg(
            "--device {requested}: torch has {devices} here.",
            requested=requested,
            devices=", ".join(d.id for d in found),
        )
    )


def notes() -> list[Message]:
    """Sentences for `doctor`."""
    if importlib.util.find_spec("torch") is None:
        return []
    found = []
    if nvidia_card() and not _cards():
        if build() == "cpu":
            found.append(
                msg(
                    "This machine has an NVIDIA card, but the installed torch is the build for CPUs and cannot use it. "
                    "Install: pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"
                )
            )
        else:
            found.append(
                msg(
                    "This machine has an NVIDIA card, but torch does not see it: the driver may be too old for this "
                    "build. Run nvidia-smi, and update the driver if it shows an older CUDA than torch was built for."
                )
            )
    if importlib.util.find_spec("bitsandbytes") is None:
        found.append(msg("4-bit bases and 8-bit optimizers need bitsandbytes. Install: pip install bitsandbytes"))
    return found


def _cards() -> list[Device]:
    if build() == "cpu" or importlib.util.find_spec("torch") is None:
        return []
    if build() != "rocm" and not nvidia_card():
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            Device(f"cuda:{index}", "cuda", properties.name, int(properties.total_memory), properties.major >= 8)
        )
    return found


@cache
def _cpu_field(name: str) -> str:
    """A field of the first processor from Linux's /proc/cpuinfo; empty elsewhere."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.partition(":")[0].strip() == name:
                return line.partition(":")[2].strip()
    except OSError:
        return ""
    return ""
