"""The kinds of jobs: a module `job_<kind>.py` in the folder of the feature, found by its name.

A kind has
    def run(arguments: Mapping[str, Any], home: Home, tell: Tell) -> dict[str, Any]
whose result is plain JSON. `tell(text, done)` is its progress, and where the user asks it to stop: it then raises Stopped.
`tell.note(text)` is a sentence for the user.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from finetune_local.system.paths import Home


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


ROOT = "finetune_local"
PREFIX = "job_"

Work = Callable[[Mapping[str, Any], Home, Tell], dict[str, Any]]


def names() -> list[str]:
    """All kinds."""
    return list(_modules())


def work_of(kind: str) -> Work:
    """What a kind does; imported only now."""
    work: Work = importlib.import_module(_modules()[kind]).run
    return work


@cache
def _modules() -> Mapping[str, str]:
    """The module of each kind. Packages are listed by their folders, so nothing is imported to find them."""
    found: dict[str, str] = {}
    package = importlib.import_module(ROOT)
    pending = [
        (f"{ROOT}.{module.name}", module.name) for module in pkgutil.iter_modules(package.__path__) if module.ispkg
    ]
    for name, folder in pending:
        for module in pkgutil.iter_modules([str(Path(path) / folder) for path in package.__path__]):
            if module.ispkg:
                pending.append((f"{name}.{module.name}", f"{folder}/{module.name}"))
            elif module.name.startswith(PREFIX):
                found[module.name.removeprefix(PREFIX)] = f"{name}.{module.name}"
    return dict(sorted(found.items()))
