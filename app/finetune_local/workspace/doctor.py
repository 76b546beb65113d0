"""Report what this machine has, which backend would be used and why, and what to install. Works without any backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_local import __version__
from finetune_local.system.messages import message_of, msg
from finetune_local.system.paths import Home

if TYPE_CHECKING:
    from finetune_local.backend import Backend, Device
    from finetune_local.system.machine import Card, Machine

LIBRARIES = (
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "xllamacpp",
    "numpy",
    "pydantic",
    "gradio",
    "pywebview",
)
ENOUGH_DISK, ENOUGH_MEMORY = 5_000_000_000, 4_000_000_000


@dataclass(frozen=True)
class FoundDevice:
    """A device, and the key of the backend that can use it."""

    backend: str
    device: Device

    def as_json(self) -> dict[str, object]:
        """The backend, then the fields of the device."""
        return {"backend": self.backend, **asdict(self.device)}


@dataclass(frozen=True)
class BackendReport:
    """What one backend has here; `missing` is the reason why it cannot be used, None if it can."""

    missing: str | None
    versions: Mapping[str, str]
    devices: list[FoundDevice] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """The fields by name."""
        return {**vars(self), "devices": [device.as_json() for device in self.devices]}


@dataclass(frozen=True)
class MachineReport:
    """What `doctor` reports; field names are the keys of `doctor --json`. Sizes are in bytes.

    `backend` is the one that would be used (None: none can be), and `why` the reason.
    """

    backend: str | None
    why: str
    devices: list[FoundDevice]
    memory_bytes: int
    memory_free_bytes: int
    home: str
    home_open_to_others: list[str]
    disk_free_bytes: int
    system: str
    processors: int
    nvidia_cards: list[Card]
    versions: Mapping[str, str]
    backends: Mapping[str, BackendReport]
    notes: list[str]

    def as_json(self) -> dict[str, object]:
        """What `doctor --json` prints."""
        return {
            **vars(self),
            "devices": [device.as_json() for device in self.devices],
            "nvidia_cards": [asdict(card) for card in self.nvidia_cards],
            "backends": {name: report.as_json() for name, report in self.backends.items()},
        }


def examine(requested: str, home: Home) -> MachineReport:
    """Examine this machine; `requested` is a backend's key, or "auto"."""
    from finetune_local.backend import backends, choose
    from finetune_local.system.errors import SpecError
    from finetune_local.system.files import free_bytes
    from finetune_local.system.machine import library_versions, machine

    found = machine()
    reports = {name: _examine_backend(backend) for name, backend in backends().items()}
    try:
        chosen, reason = choose(requested)
        name: str | None = chosen.name
        why = msg("{backend}: {reason}", backend=chosen.name, reason=reason)
    except (SpecError, ImportError, OSError, RuntimeError) as error:  # not installed, or does not load
        name, why = None, message_of(error)
    versions = {"finetune-local": __version__, "python": found.python, **library_versions(LIBRARIES)}
    free, left_open = free_bytes(home.root), home.open_to_others()
    return MachineReport(
        backend=name,
        why=why,
        devices=[device for report in reports.values() for device in report.devices],
        memory_bytes=found.memory_bytes,
        memory_free_bytes=found.memory_free_bytes,
        home=str(home.root),
        home_open_to_others=[str(place) for place in left_open],
        disk_free_bytes=free,
        system=f"{found.system} on {found.architecture}",
        processors=found.processors,
        nvidia_cards=list(found.cards),
        versions=versions | {k: v for report in reports.values() for k, v in report.versions.items()},
        backends=reports,
        notes=[note for report in reports.values() for note in report.notes]
        + _notes(found, reports, versions, free, left_open),
    )


def _examine_backend(backend: Backend) -> BackendReport:
    """Examine one backend. A broken installation (a library that does not load) is reported, not raised."""
    missing, versions = backend.missing(), backend.versions()
    devices: list[FoundDevice] = []
    notes: list[str] = []
    if missing is None:
        try:
            devices += [FoundDevice(backend.name, device) for device in backend.devices()]
            notes += backend.notes()
        except (ImportError, OSError, RuntimeError) as error:
            missing = msg("it is installed but does not work: {error}", error=error)
    return BackendReport(missing, versions, devices, notes)


def _notes(
    found: Machine, reports: Mapping[str, BackendReport], versions: Mapping[str, str], free: int, left_open: list[Path]
) -> list[str]:
    """Advice: what to install, disk and memory that are short, a home that others can read."""
    notes: list[str] = []
    kinds = {one.device.kind for report in reports.values() for one in report.devices}
    torch = reports.get("torch")
    if found.cards and "cuda" not in kinds and not (torch and torch.notes):
        notes.append(
            msg(
                "There is an NVIDIA card ({card}), but no backend uses it. Install: pip install 'finetune-local[cuda]'",
                card=found.cards[0].name,
            )
        )
    if found.apple_silicon and "metal" not in kinds:
        notes.append(msg("This Mac has a GPU that MLX can use. Install: pip install 'finetune-local[mlx]'"))
    if free < ENOUGH_DISK:
        notes.append(
            msg(
                "Only {size} are free on the disk with models and runs. Free some space, or choose another --home.",
                size=_size(free),
            )
        )
    notes += [
        msg(
            "Other users of this machine can read {place}: its disk does not support file permissions, or it "
            "belongs to another user. Choose another --home.",
            place=place,
        )
        for place in left_open
    ]
    if found.memory_bytes < ENOUGH_MEMORY:
        notes.append(
            msg("With {size} of memory only very small models can be trained.", size=_size(found.memory_bytes))
        )
    if "xllamacpp" not in versions:
        notes.append(msg("GGUF exports are verified by running them in xllamacpp. Install: pip install xllamacpp"))
    return notes


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
