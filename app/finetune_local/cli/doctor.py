"""`doctor`: what was found, which backend would be used and why, and what to install for more. Works with no backend at all."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from finetune_local import __version__, paths
from finetune_local.cli.options import backend_option, home_option, json_option
from finetune_local.cli.show import console, emit, megabytes, table

if TYPE_CHECKING:
    from finetune_local.backend import Backend
    from finetune_local.machine import Machine

LIBRARIES = ("transformers", "tokenizers", "safetensors", "gguf", "xllamacpp", "numpy", "pydantic")
ENOUGH_DISK, ENOUGH_MEMORY = 5_000_000_000, 4_000_000_000


@click.command("doctor", short_help="Show what this machine has and which backend would be used.")
@backend_option
@home_option
@json_option
def command(backend: str, home: str | None, as_json: bool) -> None:
    """Show devices, memory, disk and versions, the backend that would be used and why, and what to install for more."""
    facts = examine(backend, paths.home(home))
    if as_json:
        emit(facts)
    else:
        _print(facts)


def examine(wanted: str, home: paths.Home) -> dict[str, Any]:
    """Everything `doctor --json` prints."""
    from finetune_local.backend import backends, choose
    from finetune_local.errors import SpecError
    from finetune_local.files import free_bytes
    from finetune_local.machine import library_versions, machine

    found = machine()
    looked = {name: _look(backend) for name, backend in backends().items()}
    try:
        chosen, why = choose(wanted)
        name: str | None = chosen.name
    except (SpecError, ImportError, OSError, RuntimeError) as error:  # none installed, or one that does not load
        name, why = None, str(error)
    versions = {"finetune-local": __version__, "python": found.python, **library_versions(LIBRARIES)}
    free = free_bytes(home.root)
    return {
        "backend": name,
        "why": why,
        "devices": [device for facts in looked.values() for device in facts["devices"]],
        "memory_bytes": found.memory_bytes,
        "memory_free_bytes": found.memory_free_bytes,
        "home": str(home.root),
        "disk_free_bytes": free,
        "system": f"{found.system} on {found.architecture}",
        "processors": found.processors,
        "nvidia_cards": [asdict(card) for card in found.cards],
        "versions": versions | {k: v for facts in looked.values() for k, v in facts["versions"].items()},
        "backends": looked,
        "notes": [note for facts in looked.values() for note in facts["notes"]] + _notes(found, looked, versions, free),
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
        facts["missing"] = f"it is installed but does not work: {error}"
    return facts


def _notes(found: Machine, looked: dict[str, dict[str, Any]], versions: dict[str, str], free: int) -> list[str]:
    said = []
    kinds = {device["kind"] for facts in looked.values() for device in facts["devices"]}
    if found.cards and "cuda" not in kinds and not looked.get("torch", {}).get("notes"):
        said.append(
            f"There is an NVIDIA card ({found.cards[0].name}), but no backend uses it. Install: pip install 'finetune-local[cuda]'"
        )
    if found.apple_silicon and "metal" not in kinds:
        said.append("This Mac has a GPU that MLX can use. Install: pip install 'finetune-local[mlx]'")
    if free < ENOUGH_DISK:
        said.append(
            f"Only {megabytes(free)} are free where models and runs are kept. Make room, or set another --home."
        )
    if found.memory_bytes < ENOUGH_MEMORY:
        said.append(f"With {megabytes(found.memory_bytes)} of memory only very small models can be trained.")
    if "xllamacpp" not in versions:
        said.append("GGUF exports are checked by running them in xllamacpp. Install: pip install xllamacpp")
    return said


def _print(facts: dict[str, Any]) -> None:
    screen = console()
    screen.print(
        f"Backend: {facts['why']}" if facts["backend"] else f"No backend can be used. {facts['why']}", markup=False
    )
    rows = [
        ["system", facts["system"]],
        ["processors", facts["processors"]],
        ["memory", f"{megabytes(facts['memory_bytes'])}, {megabytes(facts['memory_free_bytes'])} free now"],
        ["home", f"{facts['home']} ({megabytes(facts['disk_free_bytes'])} free)"],
    ]
    rows += [
        [f"device of {d['backend']}", f"{d['id']}: {d['name']}, {megabytes(d['memory_bytes'])}"]
        for d in facts["devices"]
    ]
    rows += [
        ["NVIDIA card", f"{c['name']}, {megabytes(c['memory_bytes'])}, driver {c['driver']}"]
        for c in facts["nvidia_cards"]
    ]
    rows += [[f"no {name}", b["missing"]] for name, b in facts["backends"].items() if b["missing"]]
    rows.append(["versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())])
    table(["", ""], rows)
    for note in facts["notes"]:
        screen.print(f"• {note}", markup=False)
