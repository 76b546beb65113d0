"""What this machine has, which backend would be used and why, and what to install for more. Works with no backend at all."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local import __version__
from finetune_local.system.messages import Message, message_of, msg
from finetune_local.system.paths import Home

if TYPE_CHECKING:
    from finetune_local.backend import Backend
    from finetune_local.system.machine import Machine

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


def examine(wanted: str, home: Home) -> dict[str, Any]:
    """Everything `doctor --json` prints."""
    from finetune_local.backend import backends, choose
    from finetune_local.system.errors import SpecError
    from finetune_local.system.files import free_bytes
    from finetune_local.system.machine import library_versions, machine

    found = machine()
    looked = {name: _look(backend) for name, backend in backends().items()}
    try:
        chosen, reason = choose(wanted)
        name: str | None = chosen.name
        why = msg("{backend}: {reason}", backend=chosen.name, reason=reason)
    except (SpecError, ImportError, OSError, RuntimeError) as error:  # none installed, or one that does not load
        name, why = None, message_of(error)
    versions = {"finetune-local": __version__, "python": found.python, **library_versions(LIBRARIES)}
    free, left_open = free_bytes(home.root), home.open_to_others()
    return {
        "backend": name,
        "why": why,
        "devices": [device for facts in looked.values() for device in facts["devices"]],
        "memory_bytes": found.memory_bytes,
        "memory_free_bytes": found.memory_free_bytes,
        "home": str(home.root),
        "home_open_to_others": [str(place) for place in left_open],
        "disk_free_bytes": free,
        "system": f"{found.system} on {found.architecture}",
        "processors": found.processors,
        "nvidia_cards": [asdict(card) for card in found.cards],
        "versions": versions | {k: v for facts in looked.values() for k, v in facts["versions"].items()},
        "backends": looked,
        "notes": [note for facts in looked.values() for note in facts["notes"]]
        + _notes(found, looked, versions, free, left_open),
    }


def _look(backend: Backend) -> dict[str, Any]:
    """One backend; a broken installation (a library that does not load) is told, not raised."""
    missing = backend.missing()
    facts: dict[str, Any] = {"missing": missing, "versions": backend.versions(), "devices": [], "notes": []}
    if missing is not None:
        return facts
    try:
        facts["devices"] = [{"backend": backend.name, **asdict(device)} for device in backend.devices()]
        facts["notes"] = backend.notes()
    except (ImportError, OSError, RuntimeError) as error:
        facts["missing"] = msg("it is installed but does not work: {error}", error=error)
    return facts


def _notes(
    found: Machine, looked: dict[str, dict[str, Any]], versions: dict[str, str], free: int, left_open: list[Path]
) -> list[Message]:
    said = []
    kinds = {device["kind"] for facts in looked.values() for device in facts["devices"]}
    if found.cards and "cuda" not in kinds and not looked.get("torch", {}).get("notes"):
        said.append(
            msg(
                "There is an NVIDIA card ({card}), but no backend uses it. Install: pip install 'finetune-local[cuda]'",
                card=found.cards[0].name,
            )
        )
    if found.apple_silicon and "metal" not in kinds:
        said.append(msg("This Mac has a GPU that MLX can use. Install: pip install 'finetune-local[mlx]'"))
    if free < ENOUGH_DISK:
        said.append(
            msg(
                "Only {size} are free on the disk with models and runs. Free some space, or choose another --home.",
                size=_size(free),
            )
        )
    said += [
        msg(
            "Other users of this machine can read {place}: its disk does not support file permissions, or it "
            "belongs to another user. Choose another --home.",
            place=place,
        )
        for place in left_open
    ]
    if found.memory_bytes < ENOUGH_MEMORY:
        said.append(msg("With {size} of memory only very small models can be trained.", size=_size(found.memory_bytes)))
    if "xllamacpp" not in versions:
        said.append(msg("GGUF exports are verified by running them in xllamacpp. Install: pip install xllamacpp"))
    return said


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
