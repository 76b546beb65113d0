"""What is already on this machine: the home folder, the Hugging Face cache, LM Studio's folder. Nothing is copied."""

from __future__ import annotations

import os
from pathlib import Path


def hub_cache() -> Path:
    """The Hugging Face cache, by the variables its own library reads."""
    if place := os.environ.get("HF_HUB_CACHE"):
        return Path(place).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def hub_snapshot(repository: str) -> Path | None:
    """The snapshot of ORG/NAME in the Hugging Face cache that `main` points at, else the newest, else None."""
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file() and (chosen := folder / "snapshots" / main.read_text("utf-8").strip()).is_dir():
        return chosen
    found = [f for f in (folder / "snapshots").glob("*") if f.is_dir()]
    return max(found, key=lambda f: f.stat().st_mtime, default=None)
