"""What a job can be: one file each, found by name.

A kind is a module with
    def run(arguments: Mapping[str, Any], home: Home, tell: Tell) -> dict[str, Any]
whose result is plain JSON. `tell(text, done)` is its progress, and where the user asks it to stop: it then raises Stopped.
`tell.note(text)` is a sentence for the user.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from finetune_local.paths import Home


class Tell(Protocol):
    """How a job says what it is doing."""

    def __call__(self, text: str, done: float | None = None, **facts: Any) -> None:
        """Progress: what is done now, and how far from 0 to 1 (None: unknown). Raises Stopped where the user asked for it.

        `facts` are numbers of this moment (bytes, speed); "seconds_left" is shown instead of what would be reckoned.
        """
        ...

    def check(self) -> None:
        """Raise Stopped where the user asked for it, without telling anything."""
        ...

    def note(self, text: str) -> None:
        """A sentence for the user."""
        ...


Work = Callable[[Mapping[str, Any], Home, Tell], dict[str, Any]]


def names() -> list[str]:
    """All kinds."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def work_of(kind: str) -> Work:
    """What a kind does; imported only now."""
    work: Work = importlib.import_module(f"{__name__}.{kind}").run
    return work
