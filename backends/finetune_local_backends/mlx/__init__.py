"""The MLX backend: Apple Silicon, and MLX's CPU build on Linux. Importing this imports no framework."""

from __future__ import annotations

import importlib.util
import pkgutil
import platform
from pathlib import Path

from finetune_local.backend import Backend, Device, Gap, Session
from finetune_local.spec.run import Precision, Quantisation
from finetune_local.system.machine import library_versions
from finetune_local.system.messages import Message, msg
from finetune_local_backends.mlx import blas, device
from finetune_local_backends.mlx.device import GAPS

INSTALL = msg('Install it with: pip install "finetune-local[mlx]"')


class MlxBackend:
    """See Backend."""

    name = "mlx"

    def missing(self) -> Message | None:
        """See Backend; looks for the files, imports nothing."""
        system, machine = platform.system(), platform.machine()
        if system not in ("Darwin", "Linux") or (system == "Darwin" and machine != "arm64"):
            return msg(
                "MLX has no build for {system} on {machine}. Use --backend torch.", system=system, machine=machine
            )
        spec = importlib.util.find_spec("mlx")
        places = list(spec.submodule_search_locations or ()) if spec else []
        if not any(list(Path(place).glob("core*.so")) for place in places):
            return msg("MLX is not installed. {install}", install=INSTALL)
        if not any(list((Path(place) / "lib").glob("libmlx.*")) for place in places):
            return msg("MLX is installed without its CPU library (the package mlx-cpu). {install}", install=INSTALL)
        if importlib.util.find_spec("mlx_lm") is None:
            return msg("the package mlx-lm is not installed. {install}", install=INSTALL)
        return None

    def versions(self) -> dict[str, str]:
        """See Backend."""
        return library_versions(("mlx", "mlx-cpu", "mlx-lm", "scipy-openblas32"))

    def devices(self) -> list[Device]:
        """See Backend."""
        return device.devices()

    def gaps(self) -> tuple[Gap, ...]:
        """See Backend."""
        return GAPS

    def notes(self) -> list[Message]:
        """See Backend."""
        notes = []
        if reason := blas.obstacle():
            notes.append(
                msg(
                    "mlx: fp32 matrix products are about 40 times slower than this machine allows: {reason}",
                    reason=reason,
                )
            )
        if device.devices()[0].kind == "cpu":
            notes.append(msg("mlx: its CPU build is meant for testing; bf16 and quantised bases are very slow there."))
        return notes

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
        """See Backend. The only entry point: BLAS and the device are prepared before MLX is first imported."""
        from finetune_local_backends.mlx.device import start

        chosen = start(device)
        from finetune_local_backends.mlx.base.load import load
        from finetune_local_backends.mlx.session import MlxSession

        return MlxSession(load(folder, precision, quantisation, chosen, rope_factor), precision, chosen)


BACKEND: Backend = MlxBackend()
