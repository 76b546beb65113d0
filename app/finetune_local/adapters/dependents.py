"""The adapters that depend on a base model: shown before a model is removed."""

from __future__ import annotations

from pathlib import Path

from finetune_local.adapters.library import base_of, entries
from finetune_local.models.install import source_of
from finetune_local.system.errors import AdapterError
from finetune_local.system.paths import Home


def made_on(name: str, home: Home) -> list[str]:
    """Names of the adapters trained on an installed model, matched by the names their base is known under."""
    folder = home.models / name
    words = {name, str(folder), str(source_of(folder).get("from") or name)}
    return [entry.name for entry in entries(home) if _base(entry.folder) in words]


def _base(adapter: Path) -> str | None:
    try:
        return base_of(adapter)
    except AdapterError:  # damaged: its base is unknown
        return None
