"""The torch backend: CUDA with 4-bit bases, or a plain CPU. Importing this imports no torch; the first load does."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
from pathlib import Path

from finetune_local.backend import Backend, Device, Gap, Session
from finetune_local.spec.run import Precision, Quantisation
from finetune_local.system.errors import Unsupported
from finetune_local.system.machine import library_versions
from finetune_local.system.messages import Message, msg
from finetune_local_backends.torch import device as devices
from finetune_local_backends.torch.device import AFFINE, GAPS

# By default OpenMP's threads spin for milliseconds while they wait for each other. If another program occupies one core, each of
# the thousands of waits in a step costs a time slice: measured, 29 tokens/s instead of 337. A short spin is faster on an idle
# machine than none. It must be in the environment before torch is imported, and this file is always imported first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# oneDNN and torch's layer above it each cache primitives for the last 1024 shapes of a product. Rows differ in length, so in bf16
# on a CPU the process grew with every step, to several times the size of the model. 64 entries cover the shapes of a step, at the
# same speed.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")

NEEDED = ("torch", "transformers", "accelerate")
SHOWN = (*NEEDED, "bitsandbytes", "safetensors")


class TorchBackend:
    """See Backend."""

    name = "torch"

    def missing(self) -> Message | None:
        """See Backend."""
        lacking = [module for module in NEEDED if importlib.util.find_spec(module) is None]
        if not lacking:
            return None
        extra = "cuda" if devices.nvidia_card() else "cpu"
        return (
            msg(
                "{names} is not installed. Install: pip install 'finetune-local[{extra}]'",
                names=", ".join(lacking),
                extra=extra,
            )
            if len(lacking) == 1
            else msg(
                "{names} are not installed. Install: pip install 'finetune-local[{extra}]'",
                names=", ".join(lacking),
                extra=extra,
            )
        )

    def versions(self) -> dict[str, str]:
        """See Backend."""
        return library_versions(SHOWN)

    def devices(self) -> list[Device]:
        """See Backend. Imports torch only if there are signs of a GPU and a build that can use it."""
        return devices.devices()

    def gaps(self) -> tuple[Gap, ...]:
        """See Backend."""
        return GAPS

    def notes(self) -> list[Message]:
        """See Backend."""
        return devices.notes()

    def tuners(self) -> frozenset[str]:
        """See Backend: the files in tuners/."""
        folder = str(Path(__file__).parent / "tuners")
        return frozenset(module.name for module in pkgutil.iter_modules([folder]))

    def load(
        self,
        folder: Path,
        precision: Precision,
        device: str | None = None,
        quantisation: Quantisation = "auto",
        rope_factor: float = 1.0,
    ) -> Session:
        """See Backend."""
        from finetune_local_backends.torch.base.load import load_base
        from finetune_local_backends.torch.session import TorchSession

        if quantisation == "affine":
            raise Unsupported(msg("--quantisation affine: {reason}. Use --quantisation nf4.", reason=AFFINE))
        return TorchSession(load_base(folder, precision, devices.pick(device), rope_factor))


BACKEND: Backend = TorchBackend()
