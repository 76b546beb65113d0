"""How work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float | None], None]
"""Called with what is being done, and the share that is done from 0 to 1 (None: unknown)."""


def silent(what: str, done: float | None) -> None:
    """Progress that is not shown."""
