"""Which engine suits this machine: MLX on Apple Silicon, CUDA beside an NVIDIA card, the CPU otherwise."""

from __future__ import annotations

import platform
import shutil
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ENGINES = ("mlx", "cuda", "cpu")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
WINDOWS_CUDA_INDEX = "https://download.pytorch.org/whl/cu130"
PROBE_SECONDS = 4


class NoEngine(Exception):
    """Nothing here can compute; the message says what to do."""


@dataclass(frozen=True)
class Choice:
    """An engine, a sentence that says why, and a warning where it is not what the hardware offers."""

    engine: str
    why: str
    warning: str = ""


def choose(wanted: str = "auto") -> Choice:
    """The engine to install. `wanted` is the user's word, or "auto". Raises NoEngine."""
    card = nvidia_card()
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    if platform.system() == "Darwin" and not apple:
        _refuse_intel()
    if wanted == "auto":
        if apple:
            return Choice("mlx", "this is a Mac with Apple Silicon")
        if card:
            return Choice("cuda", f"found {card}")
        return Choice("cpu", "no NVIDIA card and no Apple Silicon found")
    warning = ""
    if wanted == "cpu" and card:
        warning = f"a CPU build of PyTorch is being installed although this machine has {card}: training will be slow."
    elif wanted == "cpu" and apple:
        warning = "a CPU build of PyTorch is being installed although this Mac can use MLX: training will be slow."
    elif wanted == "cuda" and not card:
        warning = "the CUDA build of PyTorch is being installed although no NVIDIA card was found."
    elif wanted == "mlx" and not apple:
        warning = "MLX off Apple Silicon computes on the CPU; it is for checking, not for work."
    return Choice(wanted, "you asked for it", warning)


def _refuse_intel() -> NoReturn:
    """A Mac that says x86_64 is an Intel one, or runs this Python under Rosetta."""
    command = ["/usr/sbin/sysctl", "-n", "sysctl.proc_translated"]
    if subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "1":
        raise NoEngine(
            "this Python is an Intel build running under Rosetta, so neither MLX nor PyTorch can be installed for it."
            " Install a native one (https://www.python.org/downloads/macos/ or `brew install python`) and use that."
        )
    raise NoEngine("neither PyTorch nor MLX is built for Intel Macs any more: use Apple Silicon, Linux or Windows.")


def nvidia_card() -> str:
    """The name of the first NVIDIA card, or the empty string. A driver that is not installed hides its card."""
    program = shutil.which("nvidia-smi")
    if not program and platform.system() == "Windows":
        beside = Path(r"C:\Windows\System32\nvidia-smi.exe")
        program = str(beside) if beside.exists() else None
    if program:
        try:
            listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        if listed.returncode == 0 and listed.stdout.startswith("GPU"):
            return "NVIDIA " + listed.stdout.split(":", 1)[1].split("(")[0].strip().removeprefix("NVIDIA ")
    if any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return "an NVIDIA card"
    return ""


def torch_requirement(engine: str, version: str) -> tuple[list[str], str]:
    """pip's arguments that bring the right build of torch, and a remark for the user (or the empty string).

    PyPI's wheel is the CUDA build on Linux and the CPU build elsewhere; the others are on PyTorch's own index.
    """
    plain = f"torch=={version}"
    system = platform.system()
    if engine == "cpu" and system == "Linux":
        if reachable(CPU_INDEX):
            return [f"{plain}+cpu", "--extra-index-url", CPU_INDEX], ""
        remark = f"{CPU_INDEX} does not answer: taking torch from your own index, which may bring the big CUDA build."
        return [plain], remark
    if engine == "cuda" and system == "Windows":
        if reachable(WINDOWS_CUDA_INDEX):
            return [plain + "+" + WINDOWS_CUDA_INDEX.rsplit("/", 1)[-1], "--extra-index-url", WINDOWS_CUDA_INDEX], ""
        remark = f"{WINDOWS_CUDA_INDEX} does not answer: taking torch from your own index, which may be the CPU build."
        return [plain], remark
    return [plain], ""


def reachable(url: str) -> bool:
    """Whether a package index answers soon; the system's proxy settings are used."""
    try:
        with urllib.request.urlopen(url + "/torch/", timeout=PROBE_SECONDS) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False
